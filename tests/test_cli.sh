#!/bin/sh
# The command line from outside: exit codes, options, messages, JSON.
# usage: test_cli.sh PATH_OF_ATTUNE [ROOT_OF_THE_REPOSITORY]
# With ATTUNE_TEST_MODEL set to the base model, also a home from init to an answer.
set -u

ATTUNE=${1:?usage: test_cli.sh PATH_OF_ATTUNE [ROOT]}
ROOT=${2:-$(dirname "$0")/..}
case $ATTUNE in /*) ;; *) ATTUNE=$PWD/$ATTUNE ;; esac
case $ROOT in /*) ;; *) ROOT=$PWD/$ROOT ;; esac
D=$(mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
trap 'exit 1' HUP INT TERM
unset ATTUNE_HOME XDG_DATA_HOME NO_COLOR
HOME=$D/user
export HOME
mkdir "$HOME"
checks=0 failures=0

fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
    sed 's/^/  out: /' "$D/out" | head -5
    sed 's/^/  err: /' "$D/err" | head -5
}

# expect CODE ARGUMENT...: the exit code; standard input is what is in $D/in, which is emptied afterwards.
expect() {
    code=$1
    shift
    checks=$((checks + 1))
    what="attune $*"
    [ -e "$D/in" ] || : >"$D/in"
    "$ATTUNE" "$@" <"$D/in" >"$D/out" 2>"$D/err"
    got=$?
    : >"$D/in"
    [ "$got" -eq "$code" ] || fail "$what: exit code $got, not $code"
}

# Of the last command: standard output or error has a line with the text (fixed).
out() {
    checks=$((checks + 1))
    grep -qF -e "$1" "$D/out" || fail "$what: no \"$1\" on standard output"
}
err() {
    checks=$((checks + 1))
    grep -qF -e "$1" "$D/err" || fail "$what: no \"$1\" on standard error"
}
# Standard output is what is given, whole.
out_is() {
    checks=$((checks + 1))
    [ "$(cat "$D/out")" = "$1" ] || fail "$what: standard output is not \"$1\""
}
silent() {
    checks=$((checks + 1))
    [ ! -s "$D/out" ] || fail "$what: something on standard output"
}
# Usage errors: code 2, nothing on standard output, a message that has the text.
refused() {
    text=$1
    shift
    expect 2 "$@"
    silent
    err "attune: "
    err "$text"
}
# One JSON object on one line whose strings, brackets and values are well-formed: tokens are taken away from
# the inside out until one "o" is left, or the text is not JSON.
json() {
    checks=$((checks + 1))
    [ "$(wc -l <"$D/out")" -eq 1 ] || fail "$what: not one line"
    rest=$(sed -E -e 's/"([^"\\]|\\["\\\/bfnrt]|\\u[0-9A-Fa-f]{4})*"/s/g' \
        -e 's/-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/v/g' -e 's/true|false|null/v/g' -e 's/ //g' \
        -e ':again' -e 's/\{(s:[svo](,s:[svo])*)?\}/o/g' -e 's/\[([svo](,[svo])*)?\]/o/g' -e 'tagain' "$D/out")
    [ "$rest" = o ] || fail "$what: not a JSON object: $rest"
}
key() {
    for name; do out "\"$name\": "; done
}

# ---- dispatch and help ----

expect 2
err "usage: attune COMMAND"
silent
expect 0 --version
checks=$((checks + 1))
grep -qE '^attune [0-9]+\.[0-9]+\.[0-9]+$' "$D/out" || fail "attune --version: not \"attune X.Y.Z\""
expect 0 help
out "usage: attune COMMAND"
expect 0 --help
for command in init record import status train eval generate chat adapters tokenize bench doctor; do
    expect 0 help
    out "  $command "
    expect 0 help $command
    out "usage: attune $command "
    out "--home DIR"
    out "--json"
    expect 0 $command --json --help
    out "usage: attune $command "
    refused "has no option --nonsense" $command --nonsense
done
refused 'no command "frobnicate"' frobnicate
refused 'did you mean "train"?' trian
refused 'did you mean "adapters"?' adapter
refused 'did you mean "status"?' help stauts
refused "options come after the command" --json status
refused "help takes one command" help train eval

# ---- options ----

refused "did you mean --time?" train --tiem 20m
refused "did you mean --max-tokens?" generate x --max-token 5
refused "--time is there twice" train --time 1m --time 2m
refused "--time wants a value" train --time
refused "--now takes no value" train --now=1
refused "a text that begins with - goes after --" generate -x
refused "has no option --energy" train --energy 5kJ
refused "has no option --precision" train --precision f32
for value in 0 -1 "" 5x 20mm "20 m" 1m30s nan inf 0x10 1e400 .; do refused "--time wants" train "--time=$value"; done
for value in 0 -1 "" 5x 4MB 1.5.G 0.5; do refused "--memory wants" train "--memory=$value"; done
for value in 0 -1 +1 "" " 1" 1.0 1e3 99999999999999999999; do refused "--examples wants" train "--examples=$value"; done
for value in -1 18446744073709551616 1.5 x; do refused "--seed wants" train "--seed=$value"; done
for value in -1 1025 x; do refused "--threads wants" train "--threads=$value"; done
for value in -1 1.01 x 0.5x nan; do refused "--top-p wants" generate x "--top-p=$value"; done
for value in catalog fres "" "active|fresh"; do refused "--from wants active|fresh" train "--from=$value"; done
refused "--merge wants none|f16|q8|same" generate x --merge q4
refused "--home wants a path" status --home=
refused "is not UTF-8" generate "$(printf 'a\377')"
refused "is not UTF-8" record --response b --prompt "$(printf '\300\200')"
refused "something is missing" generate
refused "one argument too many" generate a b
refused "one argument too many" status now
refused "something is missing" import
refused "init wants --base" init

# ---- what contradicts itself ----

refused "go together" record --prompt a
refused "only one of" record --prompt - --response -
refused "exclude each other" record --prompt a --response b --consent --no-consent
refused "want --prompt and --response" record --thumb up
refused "--thumb wants up|down" record --prompt a --response b --thumb sideways
refused "is of a home" generate x --base nowhere.gguf --adapter 3
refused "is of a home" generate x --base nowhere.gguf --adapter active
refused "--raw has no template" generate x --raw --system y
refused 'did you mean "rollback"?' adapters rolback
refused "adapters export N PATH" adapters export 1
refused "adapters show wants" adapters show base
refused "adapters use wants" adapters use first
refused "--format is for adapters export" adapters list --format gguf
refused "--format wants gguf|peft" adapters export 1 x --format onnx
refused 'did you mean "decode"?' bench decod
refused "there is no bench" bench everything

# ---- what is refused without a home, and where the home is looked for ----

for command in status train doctor "import $D/rows" "generate x" "tokenize x" "adapters list" "adapters use 1" \
    "adapters rollback" "bench merge" "eval $D/rows" chat "record --prompt a --response b"; do
    printf '{"prompt": "a", "response": "b"}\n' >"$D/rows"
    # shellcheck disable=SC2086
    expect 1 $command --home "$D/nowhere" --json
    silent
    [ "${command%% *}" = doctor ] && continue
    err "attune: "
    err "$D/nowhere"
done
ATTUNE_HOME=$D/elsewhere expect 1 status
err "$D/elsewhere"
XDG_DATA_HOME=$D/data expect 1 status
err "$D/data/attune"
expect 1 status
err "$HOME/.local/share/attune"
expect 1 init --home "$D/home" --base "$D/nowhere.gguf"
err "$D/nowhere.gguf"
printf 'no model' >"$D/bad.gguf"
expect 1 init --home "$D/home" --base "$D/bad.gguf"
err "$D/bad.gguf"
checks=$((checks + 1))
[ ! -e "$D/home" ] || fail "a refused init left a home"
expect 1 generate x --base "$D/bad.gguf"
expect 1 tokenize x --base="$D/bad.gguf" --json
silent
expect 1 eval "$D/rows" --base "$D/bad.gguf"
expect 1 doctor --base "$D/bad.gguf"

# ---- standard output that cannot be written ----

if [ -e /dev/full ]; then
    checks=$((checks + 2))
    what="attune --version to a full disk"
    "$ATTUNE" --version >/dev/full 2>"$D/err"
    [ $? -eq 1 ] || fail "$what: exit code"
    err "cannot write to standard output"
    what="attune --version to a closed standard output"
    "$ATTUNE" --version >&- 2>"$D/err"
    [ $? -eq 1 ] || fail "$what: exit code"
fi

finish() {
    printf '%d checks, %d failures\n' "$checks" "$failures"
    [ "$failures" -eq 0 ]
    exit
}
if [ -z "${ATTUNE_TEST_MODEL:-}" ]; then
    echo "ATTUNE_TEST_MODEL is not set: what needs the base model is left out"
    finish
fi

# ---- a home from init to an answer ----

export ATTUNE_HOME="$D/home"
persona=$ROOT/examples/personas/sailor.jsonl
head -3 "$persona" >"$D/three"

expect 0 init --base "$ATTUNE_TEST_MODEL" --json
json
key home base_path base_name base_sha256
out '"consent": false'
expect 1 init --base "$ATTUNE_TEST_MODEL"
err "$D/home"
expect 0 status --json
json
out '"interactions": 0'
out '"run_state": null'
expect 0 status
out "none yet"
expect 3 train --now --json
json
out '"published": false'
out '"finished": false'
out '"state": "waiting"'
expect 3 train --now
out "Not now: "

expect 0 record --prompt "What is the sea?" --response "Water, and work." --no-consent
checks=$((checks + 1))
grep -qE '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$' "$D/out" || fail "$what: not a UUIDv7"
printf 'A secret.\n' >"$D/in"
expect 0 record --prompt "Tell me." --response - --thumb up --edit "A better one." --json
json
key id
printf '{"prompt": "Ahoy?", "response": "Aye."}\n' >"$D/in"
expect 0 record --app pipe
printf 'not JSON' >"$D/in"
expect 1 record
printf 'a\377b' >"$D/in"
expect 1 record --prompt a --response -
err "byte 1"
printf 'a\000b' >"$D/in"
expect 1 record --prompt a --response -
err "NUL"
expect 0 status --json
out '"interactions": 3'
out '"consented": 0'
out '"feedback": 2'

expect 0 import "$persona" --json
json
rows=$(grep -c . "$persona")
out "\"rows\": $rows,"
expect 0 import "$persona" --json
out '"rows": 0,'
out "\"duplicates\": $rows}"
expect 0 import - --consent --app again <"$D/three"
printf '{"prompt": "a", "response": "b"}\n{"prompt": "c"}\n' >"$D/bad"
expect 1 import "$D/bad"
err "line 2"
silent
expect 0 status --json
out "\"interactions\": $((rows + 3)),"
expect 1 import "$D/nowhere"
err "$D/nowhere"

expect 0 tokenize "Hello <|im_end|>" --special --json
out_is '{"ids": [19556, 216, 2]}'
expect 0 tokenize --base "$ATTUNE_TEST_MODEL" "Hello"
out_is "19556"
printf 'Hello' >"$D/in"
expect 0 tokenize - --home "$D/nowhere" --base "$ATTUNE_TEST_MODEL" --json
out_is '{"ids": [19556]}'
expect 0 tokenize --json -- ""
out_is '{"ids": []}'
expect 0 tokenize --json -- -x
json

expect 0 eval "$D/three" --json --examples 2
json
key nll tokens perplexity
out '"examples": 2,'
expect 0 eval "$D/three" --base "$ATTUNE_TEST_MODEL" --adapter base
out "of 3 examples"
expect 1 eval "$D/bad"
err "line 2"

expect 0 generate "Say hello." --max-tokens 8 --json
json
key text ids prompt_tokens prompt_seconds seconds tokens_per_s model merge
out '"tokens": 8,'
out '"reason": "length"'
out '"adapter": 0,'
text=$(sed -E 's/^\{"text": "(([^"\\]|\\.)*)".*/\1/' "$D/out")
printf 'Say hello.\n' >"$D/in"
expect 0 generate - --max-tokens=8 --adapter base
out_is "$text"
expect 0 generate "Say hello." --max-tokens 8 --temp 1 --seed 7 --top-k 40 --top-p 0.9 --json
cp "$D/out" "$D/first"
expect 0 generate "Say hello." --max-tokens 8 --temp 1 --seed 7 --top-k 40 --top-p 0.9 --json
checks=$((checks + 1))
[ "$(sed 's/"prompt_tokens.*//' "$D/first")" = "$(sed 's/"prompt_tokens.*//' "$D/out")" ] ||
    fail "generate: another answer with the same seed"
expect 1 generate "Say hello." --adapter 9
expect 1 generate "Say hello." --context 8
printf 'Hi.\n\n/help\nAnd?\n/quit\nNever.\n' >"$D/in"
expect 0 chat --max-tokens 2 --json
checks=$((checks + 1))
[ "$(grep -c '"text": ' "$D/out")" -eq 2 ] || fail "chat: not two answers"

expect 0 adapters --json
out_is '{"active": 0, "adapters": []}'
expect 0 adapters
out "No adapters yet"
expect 1 adapters show 1
expect 1 adapters use 7
expect 0 adapters use base --json
out_is '{"active": 0}'
expect 1 adapters export 1 "$D/out.gguf"
expect 1 adapters import "$D/bad.gguf"
expect 0 doctor --json
json
out '"ok": true'
expect 0 doctor --base "$ATTUNE_TEST_MODEL"
expect 0 bench merge --seconds 0.1 --rank 4 --json
json
key tokens_per_s seconds seconds_load tokens peak_rss_mib limits gflops gbytes_per_s kernels threads
finish
