#!/bin/sh
# What shows nights: attune report, history --nights and status, over homes that were never used, with one night, with
# many, and with a record that no program of ours writes.
# usage: test_report.sh PATH_OF_ATTUNE PATH_OF_MAKE_NIGHTS ROOT_OF_THE_REPOSITORY
set -u

ATTUNE=${1:?usage: test_report.sh ATTUNE MAKE_NIGHTS ROOT}
MAKE=${2:?}
ROOT=${3:?}
# Hundreds of nights are thousands of transactions, each synced: in memory where there is such a folder.
D=$(mktemp -d -p /dev/shm 2>/dev/null || mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
trap 'exit 1' HUP INT TERM
unset ATTUNE_HOME XDG_DATA_HOME XDG_CONFIG_HOME NO_COLOR
TZ=Europe/Berlin
export TZ
checks=0 failures=0

fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
}
check() { # WHAT COMMAND...: it succeeds
    checks=$((checks + 1))
    said=$1
    shift
    "$@" >"$D/said" 2>&1 || { fail "$said"; head -5 "$D/said"; }
}
has() { # FILE TEXT
    checks=$((checks + 1))
    grep -qF -e "$2" "$1" || fail "no \"$2\" in ${1##*/}"
}
hasnt() { # FILE EXTENDED-EXPRESSION
    checks=$((checks + 1))
    ! grep -nE -e "$2" "$1" >"$D/said" || { fail "/$2/ in ${1##*/}"; cut -c1-200 "$D/said" | head -3; }
}
expect() { # CODE ARGUMENT...
    code=$1
    shift
    checks=$((checks + 1))
    "$ATTUNE" "$@" >"$D/out" 2>"$D/err" </dev/null
    got=$?
    [ "$got" -eq "$code" ] || { fail "attune $*: exit code $got, not $code"; head -3 "$D/err"; }
}

home() { # NAME N [hostile]: a home with recorded texts, and so many nights
    expect 0 init --home "$D/$1" --base "$ROOT/tests/golden/tiny_llama.gguf" --consent
    expect 0 record --home "$D/$1" --prompt "canary-asked <i>" --response "canary-answered" --app canary-app \
        --session canary-session --edit canary-edited
    name=$1
    shift
    [ "$1" -eq 0 ] || check "make_nights $name" "$MAKE" "$D/$name" "$@"
}

# Of every page: whole, alone, and without a word that was recorded.
sound() {
    page=$1
    has "$page" '</html>'
    hasnt "$page" 'canary'
    hasnt "$page" '<(script|link|img|iframe|object|i|b)[ >]'
    hasnt "$page" '://|url\(|@import|javascript:| on[a-z]+="'
    hasnt "$page" '(^|[^a-z])-?(nan|inf)([^a-z]|$)'
    has "$page" '<meta name="viewport"'
    has "$page" "default-src 'none'"
    has "$page" 'prefers-color-scheme:dark'
    checks=$((checks + 1))
    [ "$(grep -o '<svg' "$page" | wc -l)" -eq "$(grep -o '<desc' "$page" | wc -l)" ] || fail "a plot without words in $page"
    checks=$((checks + 1))
    [ -z "$(grep -o ' id="[^"]*"' "$page" | sort | uniq -d)" ] || fail "an id twice in $page"
    if command -v xmllint >/dev/null; then check "${page##*/} is well-formed" xmllint --noout "$page"; fi
    if command -v python3 >/dev/null; then
        check "${page##*/} is well-formed" python3 -c \
            'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$page"
    fi
}

# ---- never used ----
home empty 0
expect 0 report --home "$D/empty" --out "$D/empty.html"
has "$D/out" 'empty.html: 0 nights'
sound "$D/empty.html"
has "$D/empty.html" 'No night has been recorded yet.'
hasnt "$D/empty.html" '<svg'
expect 0 history --nights --home "$D/empty"
has "$D/out" 'No night is recorded'
expect 0 history --nights --home "$D/empty" --json
[ "$(cat "$D/out")" = '{"nights": [], "count": 0, "more": false}' ] || fail "an empty list: $(cat "$D/out")"
expect 0 status --home "$D/empty"
has "$D/out" 'none yet'
has "$D/out" 'attune nightly --explain'
expect 0 status --home "$D/empty" --json
has "$D/out" '"night": null'

# ---- one night ----
home one 1
expect 0 report --home "$D/one" --out "$D/one.html"
sound "$D/one.html"
has "$D/one.html" 'attune trained in 1 of 1 night,'
has "$D/one.html" 'Night of 2026-03-31'
expect 0 history --nights --home "$D/one"
has "$D/out" '2026-03-31'
has "$D/out" 'adapter 1 is published; '

# ---- sixty ----
home sixty 60
expect 0 report --home "$D/sixty" --out "$D/sixty.html"
sound "$D/sixty.html"
has "$D/sixty.html" 'of 60 nights'
has "$D/sixty.html" 'Energy by night'
has "$D/sixty.html" 'paused: the device is in use'
has "$D/sixty.html" '50 older nights'
has "$D/sixty.html" 'same: 0.00'
check 'three nights closely, in two widths' test "$(grep -o 'id="night-[0-9]-[a-z]*-t"' "$D/sixty.html" | wc -l)" -eq 6
check 'a page of sixty nights is small' test "$(wc -c <"$D/sixty.html")" -lt 300000
expect 0 report --home "$D/sixty" --out -
sed 's/as of [0-9: -]*//' "$D/out" >"$D/printed"
sed 's/as of [0-9: -]*//' "$D/sixty.html" >"$D/written"
check 'printed and written alike' cmp "$D/printed" "$D/written"
expect 0 history --nights --home "$D/sixty" --limit 2
check 'two nights' test "$(grep -c '^  2026' "$D/out")" -eq 2
has "$D/out" 'There are more'
checks=$((checks + 1))
awk 'length > 82 { exit 1 }' "$D/out" || fail 'a line too long for 80 columns (arrows and degrees are bytes more)'
expect 0 history --nights --home "$D/sixty" --all
check 'sixty nights' test "$(grep -c '^  2026' "$D/out")" -eq 60
has "$D/out" 'modelled (1 gap'
has "$D/out" 'waiting: not on a charger'
has "$D/out" 'killed: '
expect 0 history --nights --home "$D/sixty" --since 2026-03-30 --json
has "$D/out" '"count": 2, "more": false}'
has "$D/out" '"joules": {"total": '
has "$D/out" '"calls": [{"number": 60, "kind": "nightly"'
expect 0 status --home "$D/sixty"
has "$D/out" '2026-03-31, '
has "$D/out" 'held-out loss '
expect 0 status --home "$D/sixty" --json
has "$D/out" '"night": {"night_ms": 1774990800000'
expect 2 history --nights --home "$D/sixty" --app mail
expect 2 history --nights --home "$D/sixty" words

# ---- four hundred ----
home many 400
expect 0 report --home "$D/many" --out "$D/many.html"
sound "$D/many.html"
has "$D/many.html" 'Energy by week'
check 'a page of 400 nights is no burden' test "$(wc -c <"$D/many.html")" -lt 1000000

# ---- a record that no program of ours writes ----
home hostile 5 hostile
expect 0 report --home "$D/hostile" --out "$D/hostile.html"
sound "$D/hostile.html"
has "$D/hostile.html" '&lt;script&gt;'
hasnt "$D/hostile.html" '<svg/onload'
expect 0 history --nights --home "$D/hostile"
expect 0 history --nights --home "$D/hostile" --json
expect 0 status --home "$D/hostile"

# ---- encrypted, and the key is gone ----
expect 0 init --home "$D/locked" --base "$ROOT/tests/golden/tiny_llama.gguf" --consent --encrypt --key-file "$D/key"
check 'make_nights locked' "$MAKE" "$D/locked" 3
rm "$D/key"
expect 0 report --home "$D/locked" --out "$D/locked.html"
sound "$D/locked.html"
has "$D/locked.html" 'of 3 nights'
expect 0 history --nights --home "$D/locked"
expect 0 status --home "$D/locked"

# ---- what was learned: a home that has really trained, of the made base ----
expect 1 learned --home "$D/empty"
has "$D/err" 'no adapter is active'
expect 1 report --home "$D/empty" --out "$D/none.html" --texts
has "$D/err" 'attune learned first'
expect 2 learned --home "$D/empty" --adapter zero
expect 2 learned --home "$D/empty" --prompts 25
T=$D/taught
expect 0 init --home "$T" --base "$ROOT/tests/golden/tiny_llama.gguf" --consent
sed -i -e 's/^rank = .*/rank = 2/' -e 's/^epochs = .*/epochs = 3/' -e 's/^learning_rate = .*/learning_rate = 0.01/' \
    -e 's/^max_tokens = .*/max_tokens = 160/' -e 's/^micro_tokens = .*/micro_tokens = 160/' \
    -e 's/^merge = .*/merge = none/' -e 's/^reference_limit = .*/reference_limit = 100/' \
    -e 's/^reference_kl_limit = .*/reference_kl_limit = 100/' "$T/attune.conf"
head -40 "$ROOT/examples/personas/sailor.jsonl" | sed 's/"response": "/"response": "canary /' >"$D/taught.jsonl"
expect 0 import --home "$T" "$D/taught.jsonl" --consent
expect 0 train --home "$T" --now --threads 2
has "$D/out" 'Adapter 1 is published'
expect 0 report --home "$T" --out "$D/taught.html"
hasnt "$D/taught.html" 'How it answers now'
expect 0 learned --home "$T" --prompts 8 --rows 3 --answers 1
cp "$D/out" "$D/taught.txt"
has "$D/taught.txt" 'Adapter 1 against the base.'
has "$D/taught.txt" 'over 8 questions'
has "$D/taught.txt" 'Rows that moved it most'
has "$D/taught.txt" 'canary'
check 'three rows' test "$(grep -c ' answer  *20' "$D/taught.txt")" -eq 3
hasnt "$D/taught.txt" "$(printf '\033')"
hasnt "$D/err" '.'
expect 0 learned --home "$T" --prompts 8 --json
has "$D/out" '"from_cache": true'
has "$D/out" '"name": "sentence_words"'
check 'one object' test "$(wc -l <"$D/out")" -eq 1
expect 0 learned --home "$T" --adapter 1 --prompts 8 --rows 0 --answers 0
hasnt "$D/out" 'Rows that moved|attune forget'
expect 1 learned --home "$T" --adapter 7
has "$D/err" 'no adapter 7'
expect 0 report --home "$T" --out "$D/taught.html"
sound "$D/taught.html"
has "$D/taught.html" 'How it answers now'
has "$D/taught.html" 'nothing of what was recorded'
expect 0 report --home "$T" --out "$D/texts.html" --texts
has "$D/out" 'for your own eyes'
has "$D/texts.html" 'canary'
has "$D/texts.html" 'Side by side'
hasnt "$D/texts.html" 'nothing of what was recorded'
expect 0 forget --home "$T" --match zzz --yes
has "$D/out" 'nothing was deleted'
expect 0 forget --home "$T" --match canary --yes
check 'forgetting leaves nothing of it' test -z "$(ls -A "$T/cache" | grep learned)"
expect 1 learned --home "$T"

# ---- where it is written ----
check 'only its owner reads it' test "$(stat -c %a "$D/one.html")" = 600
mkdir "$D/folder"
expect 1 report --home "$D/one" --out "$D/folder"
has "$D/err" 'is a folder'
expect 1 report --home "$D/one" --out "$D/nowhere/page.html"
has "$D/err" 'No such file'
mkfifo "$D/pipe"
expect 1 report --home "$D/one" --out "$D/pipe"
has "$D/err" 'is not a file'
echo old >"$D/old.html"
chmod 644 "$D/old.html"
(cd "$D" && "$ATTUNE" report --home one --out old.html --json >"$D/out") || fail 'a path without a folder'
has "$D/out" '"nights": 1, "adapters": 1}'
has "$D/old.html" '</html>'
check 'the new page has its own mode' test "$(stat -c %a "$D/old.html")" = 600
check 'nothing is left beside the page' test -z "$(ls -A "$D" | grep attune-report)"
expect 2 report --home "$D/one"
expect 2 report --home "$D/one" --out ''
expect 2 report --home "$D/one" --out - --json
expect 1 report --home "$D/none" --out "$D/none.html"
check 'no page without a home' test ! -e "$D/none.html"

[ "$failures" -eq 0 ] || { echo "$failures of $checks checks failed"; exit 1; }
echo "$checks checks passed"
