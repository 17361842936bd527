#!/bin/sh
# Deletes the conditions of energy/policy.c one at a time, and expects the random walk to notice each; then shifts the
# comparisons and swaps the connectives of its conditions, which the walk or the table has to notice.
#
#   sh tests/policy_mutants.sh CC ROOT
set -eu
LC_ALL=C
export LC_ALL
cc=${1:?the C compiler} root=${2:?the root of the tree}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=$root/energy/policy.c

compile() {
    "$cc" -std=gnu11 -O1 -w -I"$root" -I"$root/include" -c "$1" -o "$2" || exit 2
}
for test in test_policy_walk test_policy; do compile "$root/tests/$test.c" "$work/$test.o"; done
compile "$root/energy/window.c" "$work/window.o"

# passes TEST: with policy.o as it is now.
passes() {
    "$cc" "$work/$1.o" "$work/policy.o" "$work/window.o" -lcmocka -lm -o "$work/$1" || exit 2
    "$work/$1" >/dev/null 2>&1
}

# One line for each mutant: kind, first line, last line, and the sed command for these. The conditions stand between
# two headings; a statement may go over several lines.
list() {
    awk '
        function each(from, to,    rest, before) {
            rest = $0
            before = 0
            while (at = index(rest, from)) {
                before += at - 1
                print "shift", NR, NR, "s/^\\(.\\{" before "\\}\\)" from "/\\1" to "/"
                before += length(from)
                rest = substr($0, before + 1)
            }
        }
        /^\/\* ---- what looks leave behind/ { inside = 1 }
        /^\/\* ---- for people/ { inside = 0 }
        !inside { next }
        /^ +(if \(|note_[a-z]+\()/ && !/{$/ { first = NR }
        first && /;$/ { print "delete", first, NR, "s/.*//"; first = 0 }
        /^ +\[CONDITION_/ { print "delete", NR, NR, "s/= judge_[a-z_]*/= judge_nothing/" }
        /^static struct said gravest/ { decided = 1 }
        decided || /^ *(\/\*|\* )/ { next }
        { each(" < ", " <= "); each(" <= ", " < "); each(" > ", " >= "); each(" >= ", " > ") }
        { each(" && ", " || "); each(" || ", " \\&\\& ") }
    ' "$source"
}

# A condition that says nothing stands ready in the place of the others.
sed 's/^static struct said (\*const judges/static struct said judge_nothing(const struct looked *l) { return nothing; }\
&/' "$source" >"$work/unchanged.c"
moved=$(grep -n '^static struct said judge_nothing' "$work/unchanged.c" | cut -d: -f1)

# mutate FIRST LAST EDIT: policy.o of the changed source.
mutate() {
    first_now=$1 last_now=$2
    [ "$1" -lt "$moved" ] || first_now=$(($1 + 1)) last_now=$(($2 + 1))
    sed "$first_now,$last_now$3" "$work/unchanged.c" >"$work/policy.c"
    ! cmp -s "$work/policy.c" "$work/unchanged.c" || { echo "line $1 is not changed by $3"; exit 2; }
    compile "$work/policy.c" "$work/policy.o"
}

compile "$work/unchanged.c" "$work/policy.o"
passes test_policy_walk && passes test_policy || { echo "the tests fail without any change"; exit 1; }

list >"$work/list"
deleted=0 shifted=0 missed=0
while read -r kind first last edit; do
    mutate "$first" "$last" "$edit"
    case $kind in
    delete) deleted=$((deleted + 1)) ;;
    shift) shifted=$((shifted + 1)) ;;
    esac
    passes test_policy_walk || continue
    [ "$kind" = delete ] || passes test_policy || continue
    missed=$((missed + 1))
    echo "nobody noticed ($kind, $edit):"
    sed -n "$first,${last}p" "$source"
done <"$work/list"
echo "$deleted conditions deleted, $shifted comparisons and connectives shifted, $missed not noticed"
[ "$deleted" -ge 60 ] && [ "$missed" -eq 0 ]
