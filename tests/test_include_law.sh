#!/bin/sh
# The dependency law of docs/architecture.md, read off the #include lines, and what else can be told from the
# tree's text. Which folder may include from which stands in the table below.
#
#   sh tests/test_include_law.sh              first that every rule can fail, then this tree
#   sh tests/test_include_law.sh --tree DIR   that tree alone
set -eu
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)

# room: the rooms that it may include from, beside itself. "api" is include/attune.h. A room that is not
# named here is refused: it needs its line first.
law='
include:
core/base:      api
core/kernels:   api core/base
core/ops:       api core/base core/kernels
core/model:     api core/base core/kernels core/ops
adapters:       api core/base core/kernels core/ops core/model
datastore:      api core/base
energy:         api core/base
trainer:        api core/base core/kernels core/ops core/model adapters
inference:      api core/base core/kernels core/ops core/model adapters
job:            api core/base core/kernels core/ops core/model adapters datastore energy trainer inference
cli:            api
bindings:       api
examples:       api
bench:          api core/base core/kernels core/ops core/model adapters datastore energy trainer inference job
tests:          api core/base core/kernels core/ops core/model adapters datastore energy trainer inference job cli
'

# Headers of other libraries that only these rooms may know.
owners='
sqlite3.h:      datastore bench tests
cblas.h:        core/kernels bench
'

# Paths below $1 whose names match the patterns that follow, without what is built or not ours.
files() {
    tree=$1
    shift
    (cd "$tree" && find . \( -name .git -o -path ./build -o -path ./shared \) -prune -o -type f \( "$@" \) -print |
        sed 's|^\./||' | sort)
}

include_lines() {
    files "$1" -name '*.[ch]' | (cd "$1" && xargs grep -n '^[[:space:]]*#[[:space:]]*include' /dev/null) || :
}

check_includes() {
    include_lines "$1" | awk -v law="$law" -v owners="$owners" '
        function room(path, parts, n) {
            if (path == "attune.h" || path == "include/attune.h") return "api"
            n = split(path, parts, "/")
            if (n == 1) return ""
            return parts[1] == "core" && n > 2 ? "core/" parts[2] : parts[1]
        }
        function table(text, to, lines, words, n, i, j, k) {
            n = split(text, lines, "\n")
            for (i = 1; i <= n; i++) {
                k = split(lines[i], words, "[: ]+")
                if (words[1] == "") continue
                known[words[1]] = 1
                for (j = 2; j <= k; j++) to[words[1], words[j]] = 1
            }
        }
        function wrong(message) { printf "%s:%s: %s\n", file, line, message }
        BEGIN { table(law, may); table(owners, owned) }
        {
            file = $0; sub(/:.*/, "", file)
            rest = substr($0, length(file) + 2)
            line = rest; sub(/:.*/, "", line)
            name = rest; sub(/^[^"<]*["<]/, "", name); sub(/[">].*/, "", name)
            quoted = rest ~ /include[ \t]*"/
            from = room(file)
            if (from == "api") from = "include"
            if (!(from in known)) { wrong("folder " from "/ is not in the dependency law"); next }
            if (name ~ /\.c$/) { wrong("includes the source file " name); next }
            if (!quoted) {
                if (room(name) in known || name == "attune.h") wrong("write \"" name "\", not <" name ">")
                if ((name in known) && !((name, from) in owned)) wrong("<" name "> is not for " from "/")
                next
            }
            to = room(name)
            if (to == "") wrong("write \"" name "\" from the root of the tree")
            else if (to != from && !((from, to) in may)) wrong(from "/ may not include " name)
        }'
}

# An include from the root names a file of the tree.
check_found() {
    include_lines "$1" | sed -n 's/^\([^:]*:[0-9]*\):.*include[[:space:]]*"\([^"]*\)".*/\1 \2/p' |
        while read -r place name; do
            [ -f "$1/$name" ] || [ -f "$1/include/$name" ] || printf '%s: there is no %s\n' "$place" "$name"
        done
}

# A name tells where it is.
check_names() {
    files "$1" -name '*.[ch]' -o -name '*.py' -o -name '*.sh' | awk '
        {
            name = $0; sub(/.*\//, "", name)
            if (name in at) printf "%s: there is %s already\n", $0, at[name]
            at[name] = $0
        }'
}

# One binary runs on every machine of its kind: the instruction set is chosen at run time.
check_machine() {
    files "$1" -name '*.[ch]' -o -name 'CMakeLists.txt' -o -name '*.cmake' -o -name 'CMakePresets.json' \
        -o -path './script/*' -o -path './.ci/*' | (cd "$1" && xargs grep -n 'march=[n]ative' /dev/null) |
        sed 's/^\([^:]*:[0-9]*\):.*/\1: builds for one machine only/'
}

# What is installed or fetched comes by its package's name, from wherever the machine is set up to look.
check_network() {
    files "$1" -name 'CMakeLists.txt' -o -name '*.cmake' -o -name '*.in' -o -name 'CMakePresets.json' -o -name '*.sh' \
        -o -path './script/*' -o -path './.ci/*' |
        (cd "$1" && xargs grep -nE '[a-z]:[/][/]|--(extra-)?index-[u]rl|--find-[l]inks' /dev/null) |
        sed 's/^\([^:]*:[0-9]*\):.*/\1: names a place in the network/'
}

# The kernel's uevents come through a socket, which reaches no network. There is no other one.
check_sockets() {
    files "$1" -name '*.[ch]' | grep -vE '^(tests|bench)/' |
        (cd "$1" && xargs grep -nE '(^|[^[:alnum:]_>.])socket(pair)?[[:space:]]*\(|SYS_socket' /dev/null) |
        grep -v '^energy/uevents\.c:.*socket(AF_NETLINK, [^()]*, NETLINK_KOBJECT_UEVENT);$' |
        sed 's/^\([^:]*:[0-9]*\):.*/\1: opens a socket/'
}

warn_long() {
    files "$1" -name '*.[ch]' | (cd "$1" && xargs wc -l) |
        awk '$1 > 900 && $2 != "total" { printf "warning: %s has %s lines\n", $2, $1 }' >&2
}

check_tree() {
    [ -n "$(files "$1" -name '*.[ch]')" ] || { echo "$1: no source files there"; return; }
    check_includes "$1"
    check_found "$1"
    check_names "$1"
    check_machine "$1"
    check_network "$1"
    check_sockets "$1"
}

# ---- every rule fails on a tree that breaks it ----

small=
put() {
    mkdir -p "$small/$(dirname "$1")"
    printf '%s\n' "$2" >"$small/$1"
}

lawful() {
    rm -rf "${small:?}"/*
    put include/attune.h '#include <stddef.h>'
    put core/base/error.h '#include "attune.h"'
    put core/base/error.c '#include "core/base/error.h"'
    put core/kernels/tables.h '#include "core/base/error.h"'
    put adapters/lora.h '#include "core/base/error.h"'
    put datastore/store.h '#include <sqlite3.h>'
    put inference/engine.h '#include "adapters/lora.h"'
    put trainer/trainer.h '  #  include "adapters/lora.h"'
    put job/job.c '#include "trainer/trainer.h"
#include "inference/engine.h"'
    put cli/cli.h '#include "attune.h"'
    put energy/uevents.c 'int fd = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT);'
    put bench/peer.c 'int fd = socket(AF_INET, SOCK_STREAM, 0);'
    put script/run 'cmake --build build'
}

# refused WORDS PATH LINE: with this file the lawful tree is refused, in these words.
refused() {
    lawful
    put "$2" "$3"
    check_tree "$small" >"$small.said"
    grep -qF "$1" "$small.said" && return
    printf 'self-check: %s with "%s" was not refused as "%s"\n' "$2" "$3" "$1"
    cat "$small.said"
}

self_check() {
    small=$(mktemp -d)
    trap 'rm -rf "$small" "$small.said"' EXIT
    lawful
    check_tree "$small" | sed 's/^/self-check: the lawful tree was refused: /'
    refused 'may not include trainer/trainer.h' core/model/model.c '#include "trainer/trainer.h"'
    refused 'may not include inference/engine.h' trainer/steps.c '#include "inference/engine.h"'
    refused 'may not include trainer/trainer.h' inference/steps.c '#include "trainer/trainer.h"'
    refused 'may not include adapters/lora.h' datastore/rows.c '#include "adapters/lora.h"'
    refused 'may not include datastore/store.h' trainer/rows.c '#include "datastore/store.h"'
    refused 'may not include core/kernels/tables.h' core/base/low.c '#include "core/kernels/tables.h"'
    refused 'may not include core/kernels/tables.h' energy/power.c '	#include  "core/kernels/tables.h"'
    refused 'may not include core/base/error.h' cli/main.c '#include "core/base/error.h"'
    refused 'may not include cli/cli.h' bench/speed.c '#include "cli/cli.h"'
    refused 'may not include cli/cli.h' job/gate.c '#include "cli/cli.h"'
    refused 'is not in the dependency law' cellar/wine.c '#include "attune.h"'
    refused 'includes the source file' tests/test_error.c '#include "core/base/error.c"'
    refused 'from the root of the tree' core/base/hash.c '#include "error.h"'
    refused 'there is no adapters/gone.h' job/gone.c '#include "adapters/gone.h"'
    refused 'not <core/base/error.h>' datastore/rows.c '#include <core/base/error.h>'
    refused '<sqlite3.h> is not for energy/' energy/ledger.c '#include <sqlite3.h>'
    refused 'there is core/base/error.c already' job/error.c '#include "core/base/error.h"'
    refused 'builds for one machine only' cmake/flags.cmake "add_compile_options(-march=$(printf native))"
    refused 'a place in the network' script/get "curl https:$(printf //)example.org/model"
    refused 'energy/uevents.c:1: opens a socket' energy/uevents.c 'fd = socket(AF_INET, SOCK_DGRAM, 0);'
    refused 'energy/uevents.c:1: opens a socket' energy/uevents.c 'fd = socket(AF_NETLINK, SOCK_DGRAM, NETLINK_ROUTE);'
    refused 'opens a socket' job/job.c '	socket (AF_NETLINK, SOCK_DGRAM, NETLINK_KOBJECT_UEVENT);'
    refused 'opens a socket' datastore/rows.c 'return socketpair(AF_UNIX, SOCK_STREAM, 0, pair);'
    refused 'opens a socket' cli/main.c 'syscall(SYS_socket, 2, 1, 0);'
    rm -rf "$small" "$small.said"
}

if [ "${1:-}" = --tree ]; then
    tree=${2:?--tree wants a folder}
    found=$(check_tree "$tree")
else
    tree=$here/..
    found=$(self_check)
    [ -n "$found" ] || found=$(check_tree "$tree")
fi
warn_long "$tree"
if [ -n "$found" ]; then
    printf '%s\n' "$found"
    exit 1
fi
echo "the dependency law holds"
