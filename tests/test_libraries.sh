#!/bin/sh
# What the two shared libraries need, export and stay away from, as readelf tells it.
#
#   sh tests/test_libraries.sh BUILD_DIR      the folder with libattune-store.so and libattune.so
set -eu
LC_ALL=C
export LC_ALL
build=${1:?usage: test_libraries.sh BUILD_DIR}
header=$(cd "$(dirname "$0")/.." && pwd)/include/attune.h
store=$build/libattune-store.so
engine=$build/libattune.so

wrong() { printf '%s\n' "$*"; }

# The values of a dynamic tag, NEEDED or SONAME.
dynamic() { readelf -dW "$2" | sed -n "s/.*($1).*\[\(.*\)\].*/\1/p"; }

# "name version", a line for each dynamic symbol that the library defines; version is - when it has none.
# (The version nodes themselves are absolute symbols.)
exports() {
    readelf --dyn-syms -W "$1" | awk '$7 ~ /^[0-9]+$/ && $8 != "" {
        n = split($8, part, /@+/)
        print part[1], (n > 1 ? part[2] : "-")
    }'
}

imports() {
    readelf --dyn-syms -W "$1" | awk '$7 == "UND" && $8 != "" { sub(/@.*/, "", $8); print $8 }'
}

# check_needed FILE ALLOWED...: the libraries it asks the loader for are among these.
check_needed() {
    file=$1
    shift
    for needed in $(dynamic NEEDED "$file"); do
        case " $* libc.so libm.so libpthread.so ld-linux-x86-64.so ld-linux-aarch64.so " in
        *" ${needed%.so*}.so "*) ;;
        *) wrong "$file needs $needed" ;;
        esac
    done
}

check_soname() {
    [ "$(dynamic SONAME "$1")" = "$2" ] || wrong "$1 has the SONAME '$(dynamic SONAME "$1")', not $2"
}

# Only attune_* is public; what libattune borrows from libattune-store is in a node that says so.
check_exports() {
    exports "$1" | awk -v file="$1" -v private="$2" '
        $1 ~ /^attune_/ && $2 == "ATTUNE_0" { next }
        private != "" && $2 == private && $1 !~ /^attune_/ { next }
        { printf "%s exports %s in version node %s\n", file, $1, $2 }'
}

# The host's BLAS, its signals and the network are not for these libraries. $2: what this one may import all the same;
# libattune hears the kernel's uevents, and test_include_law.sh sees to it that its socket is no other.
check_imports() {
    imports "$1" | awk -v file="$1" -v may="$2" '
        index(" " may " ", " " $1 " ") { next }
        /^(socket|socketpair|connect|bind|listen|accept4?|getaddrinfo|gethostbyname|send|sendto|recv|recvfrom|sendmsg|recvmsg)$/ ||
        /^(signal|sigaction|bsd_signal|sysv_signal|__sysv_signal|sigset)$/ ||
        /^(cblas_|openblas_|goto_set_num_threads|sgemm_|dgemm_|blas_)/ { printf "%s imports %s\n", file, $1 }'
}

# Every function of the header is in exactly one of the two, and so is nothing else that is public.
check_header() {
    { exports "$store"; exports "$engine"; } | awk '$2 == "ATTUNE_0" { print $1 }' | sort >"$work/exported"
    sed -n '/^ATTUNE_API/s/^[^(]*[ *]\(attune_[a-z0-9_]*\)(.*/\1/p' "$header" | sort -u >"$work/declared"
    [ -s "$work/declared" ] || wrong "no function found in $header"
    uniq -d "$work/exported" | sed 's/$/ is exported by both libraries/'
    sort -u "$work/exported" | comm -13 - "$work/declared" | sed 's/$/ is declared in attune.h and exported by neither/'
    sort -u "$work/exported" | comm -23 - "$work/declared" | sed 's/$/ is exported, but not declared in attune.h/'
}

check() {
    check_soname "$store" libattune-store.so.0
    check_soname "$engine" libattune.so.0
    check_needed "$store" libsqlite3.so libsodium.so libjansson.so libpcre2-8.so libutf8proc.so
    check_needed "$engine" libattune-store.so libsqlite3.so libsodium.so libjansson.so libpcre2-8.so libutf8proc.so \
        libsystemd.so
    dynamic NEEDED "$store" | grep -q '^libsqlite3\.so' || wrong "$store does not need libsqlite3"
    dynamic NEEDED "$engine" | grep -q '^libattune-store\.so' || wrong "$engine does not need libattune-store"
    check_exports "$store" ATTUNE_PRIVATE_0
    check_exports "$engine" ''
    check_imports "$store" ''
    check_imports "$engine" 'socket bind recvmsg'
    check_header
}

for file in "$store" "$engine"; do
    [ -f "$file" ] || { wrong "there is no $file"; exit 1; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
found=$(check)
if [ -n "$found" ]; then
    printf '%s\n' "$found"
    exit 1
fi
echo "the libraries need and export what they should"
