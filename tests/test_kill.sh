#!/bin/sh
# A run that is killed loses nothing: the store, the published adapters and the active one stay whole, and the
# run that goes on ends in the same bytes as one that nobody disturbed.
#
#   sh tests/test_kill.sh ATTUNE [SOURCE_DIR]
#
# Kills once at every pass of every fault point (before and after each write, fsync, rename, commit), then at random
# moments, ATTUNE_TEST_KILLS times (default 50): over a hundred in all, many of them in a checkpoint, which is written
# after every piece. On the tiny model; with ATTUNE_TEST_FULL=1 on ATTUNE_TEST_MODEL.
set -eu
attune=$1
root=${2:-$(cd "$(dirname "$0")/.." && pwd)}
kills=${ATTUNE_TEST_KILLS:-50}
rows=16
base=$root/tests/golden/tiny_llama.gguf
rate=0.01 # of the second run
settings='rank = 2|epochs = 3|learning_rate = 0.01|max_tokens = 400|micro_tokens = 400|reference_limit = 100|reference_kl_limit = 100'
if [ "${ATTUNE_TEST_FULL:-}" = 1 ] && [ -n "${ATTUNE_TEST_MODEL:-}" ]; then
    base=$ATTUNE_TEST_MODEL
    rows=8
    rate=0.004
    settings='rank = 2|epochs = 0.5|batch = 2|learning_rate = 0.001|max_tokens = 80|micro_tokens = 256|reference_limit = 100|reference_kl_limit = 100'
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset ATTUNE_FAULT ATTUNE_FAULT_LIST

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
value() { sed -n "s/.*\"$1\": *\"\{0,1\}\([^,\"}]*\).*/\1/p"; }
sha() { sha256sum "$1" | cut -d ' ' -f 1; }
set_conf() { # HOME "key = value"
    key=${2%% *}
    grep -q "^$key = " "$1/attune.conf" || fail "no setting $key"
    sed "s/^$key = .*/$2/" "$1/attune.conf" >"$1/conf.new" && mv "$1/conf.new" "$1/attune.conf"
}
train() { "$attune" train --home "$1" --now --threads 2 --json; }

# ---- a home with adapter 1 published, and rows that are new since ----
template=$work/template
"$attune" init --home "$template" --base "$base" --consent >/dev/null
printf '%s' "$settings|checkpoint_seconds = 0|merge = none" | tr '|' '\n' >"$work/settings"
printf '\n' >>"$work/settings"
while read -r line; do set_conf "$template" "$line"; done <"$work/settings"
head -n $rows "$root/examples/personas/sailor.jsonl" | "$attune" import --home "$template" - >/dev/null
train "$template" >"$work/first.json" || fail "the first run: $(cat "$work/first.json")"
[ "$(value published <"$work/first.json")" = true ] || fail "the first adapter was not published: $(cat "$work/first.json")"
first=$(sha "$template/adapters/1.gguf")
set_conf "$template" "learning_rate = $rate"
sed -n "$((rows + 1)),$((rows + 4))p" "$root/examples/personas/sailor.jsonl" | "$attune" import --home "$template" - >/dev/null

fresh() { # a new copy of the template
    rm -rf "$work/home"
    cp -a "$template" "$work/home"
}

# ---- undisturbed: what every other run must end in, and the fault points that it passes ----
fresh
ATTUNE_FAULT_LIST=$work/points train "$work/home" >"$work/out.json" || fail "undisturbed: $(cat "$work/out.json")"
[ "$(value published <"$work/out.json")" = true ] || fail "undisturbed, but not published: $(cat "$work/out.json")"
second=$(sha "$work/home/adapters/2.gguf")
[ "$first" != "$second" ] || fail "the second run learned nothing"
for name in checkpoint.rename adapter.rename current.rename store.commit; do
    grep -q "^$name\.before$" "$work/points" || fail "the run never passed $name.before"
done

intact() { # WHEN: after a kill, before anything is mended
    [ "$(sha "$work/home/adapters/1.gguf")" = "$first" ] || fail "$1: adapter 1 has changed"
    case $(cut -d ' ' -f 1,2 "$work/home/CURRENT") in
    "1 $first" | "2 $second") ;;
    *) fail "$1: CURRENT is $(cat "$work/home/CURRENT")" ;;
    esac
    "$attune" doctor --home "$work/home" >"$work/doctor" 2>&1 || fail "$1: $(cat "$work/doctor")"
}
ends_the_same() { # WHEN: goes on to the end
    code=0
    train "$work/home" >"$work/out.json" 2>"$work/err" || code=$?
    # 3: it had been published before the kill, and nothing is new
    [ $code = 0 ] || { [ $code = 3 ] && [ "$(value state <"$work/out.json")" = waiting ]; } ||
        fail "$1: going on gave $code: $(cat "$work/out.json" "$work/err")"
    [ "$(sha "$work/home/adapters/2.gguf")" = "$second" ] || fail "$1: another adapter than without the kill"
    [ "$(cut -d ' ' -f 1 "$work/home/CURRENT")" = 2 ] || fail "$1: CURRENT is $(cat "$work/home/CURRENT")"
    [ ! -e "$work/home/adapters/3.gguf" ] || fail "$1: published twice"
    [ ! -e "$work/home/checkpoint.gguf" ] || fail "$1: the checkpoint stays"
    [ -z "$(find "$work/home" -name '.*.tmp')" ] || fail "$1: leftovers: $(find "$work/home" -name '.*.tmp')"
    "$attune" doctor --home "$work/home" >"$work/doctor" 2>&1 || fail "$1: in the end $(cat "$work/doctor")"
}

# ---- at every fault point: first, second and last pass ----
sort "$work/points" | uniq -c | while read -r count name; do
    printf '%s 1\n' "$name"
    [ "$count" -lt 2 ] || printf '%s 2\n' "$name"
    [ "$count" -lt 3 ] || printf '%s %s\n' "$name" "$count"
done >"$work/kills"
n=0
while read -r name pass; do
    fresh
    code=0
    (ATTUNE_FAULT=$name:$pass:kill train "$work/home") >/dev/null 2>&1 || code=$?
    [ $code = 137 ] || fail "$name, pass $pass: the run was not killed but ended with $code"
    intact "$name, pass $pass"
    ends_the_same "$name, pass $pass"
    n=$((n + 1))
done <"$work/kills"
printf '%d kills at %d fault points: nothing was lost\n' $n "$(sort -u "$work/points" | wc -l)"

# ---- at random moments, again and again until the run is through ----
fresh
start=$(date +%s%N)
train "$work/home" >/dev/null
length=$((($(date +%s%N) - start) / 1000000)) # milliseconds
seed=$(date +%s)
done_kills=0
while [ $done_kills -lt "$kills" ]; do
    fresh
    tries=0
    while [ $tries -lt 4 ] && [ $done_kills -lt "$kills" ]; do
        seed=$(((seed * 1103515245 + 12345) % 2147483648))
        wait=$(awk "BEGIN { printf \"%.3f\", ($seed / 65536 % 1000) / 1000 * $length / 1000 }")
        code=0
        "$attune" train --home "$work/home" --now --threads 2 --json >/dev/null 2>&1 &
        sleep "$wait"
        {
            kill -KILL $! || :
            wait $! || code=$? # it is gone then, and its lock with it
        } 2>/dev/null
        [ $code = 137 ] || break
        done_kills=$((done_kills + 1))
        tries=$((tries + 1))
        intact "random kill $done_kills"
    done
    ends_the_same "after random kill $done_kills"
done
printf '%d kills at random moments: nothing was lost\n' "$done_kills"
[ -n "${ATTUNE_TEST_KILLS:-}" ] || [ $((n + done_kills)) -ge 100 ] || fail "$((n + done_kills)) kills are too few"
