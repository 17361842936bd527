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
unset ATTUNE_HOME XDG_DATA_HOME XDG_CONFIG_HOME NO_COLOR TZ
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
# Standard output and error have nothing that steers a terminal: ESC, BEL, CR, DEL, C1, or turns text around.
tame() {
    checks=$((checks + 1))
    cat "$D/out" "$D/err" | LC_ALL=C tr -d '\040-\176\200-\377\n\t' >"$D/control"
    [ ! -s "$D/control" ] || fail "$what: control characters"
    for bytes in '\302\233' '\342\200\256' '\342\201\246'; do
        # shellcheck disable=SC2059
        ! cat "$D/out" "$D/err" | LC_ALL=C grep -qF "$(printf "$bytes")" || fail "$what: $bytes"
    done
}
# nowhere TEXT FOLDER: no file there has it.
nowhere() {
    checks=$((checks + 1))
    ! LC_ALL=C grep -rqF -e "$1" "$2" || fail "\"$1\" is in $(LC_ALL=C grep -rlF -e "$1" "$2" | tr '\n' ' ')"
}
# terminal CODE ANSWER ARGUMENT...: where a person types the answer; both streams are in $D/out.
terminal() {
    code=$1 answer=$2
    shift 2
    checks=$((checks + 1))
    what="attune $* (on a terminal)"
    : >"$D/err"
    printf '%s\n' "$answer" >"$D/typed"
    printf '%s\n' "NO_COLOR=1 '$ATTUNE' $*" >"$D/typed.sh"
    script -qec "sh '$D/typed.sh'" /dev/null <"$D/typed" >"$D/typed.out"
    got=$?
    tr -d '\r' <"$D/typed.out" >"$D/out"
    [ "$got" -eq "$code" ] || fail "$what: exit code $got, not $code"
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
for command in init record import status history consent forget export train eval generate chat adapters backup \
    restore tokenize bench doctor report; do
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
refused "auto|f32" train --precision f16
for value in 0 -1 "" 5x 20mm "20 m" 1m30s nan inf 0x10 1e400 .; do refused "--time wants" train "--time=$value"; done
for value in 0 -1 "" 5x 4MB 1.5.G 0.5; do refused "--memory wants" train "--memory=$value"; done
for value in 0 -1 +1 "" " 1" 1.0 1e3 99999999999999999999; do refused "--examples wants" train "--examples=$value"; done
for value in -1 18446744073709551616 1.5 x; do refused "--seed wants" train "--seed=$value"; done
for value in -1 1025 x; do refused "--threads wants" train "--threads=$value"; done
for value in -1 1.01 x 0.5x nan; do refused "--top-p wants" generate x "--top-p=$value"; done
for value in catalog fres "" "active|fresh"; do refused "--from wants active|fresh" train "--from=$value"; done
refused "--merge wants none|same|calibrated|q8|f16|auto" generate x --merge q4
refused "--merge wants none|f16|q8|same" bench decode --merge auto
refused "--kv wants f16|q8|f32" generate x --kv q4
refused "--precision wants auto|f32" generate x --precision f16
for value in -2.1 2.1 x -nan --1 -; do refused "--frequency-penalty wants" generate x "--frequency-penalty=$value"; done
for value in 0 -1 1.5 x ""; do refused "--penalty-window wants" generate x "--penalty-window=$value"; done
for value in "" x 3 =1 3= -1=2 3=x 3=101 3=-101 3=inf 3=-Inf 3=nan 99999999999=1 "3 =1"; do
    refused "--bias wants ID=VALUE" generate x "--bias=$value"
done
refused "--alternatives is for --json" generate x --alternatives 3
refused "--alternatives wants" generate x --json --alternatives 21
refused "--lookup wants" generate x --lookup 9
refused "--home wants a path" status --home=
refused "has no option --key-file" doctor --key-file x
refused "has no option --key-file" generate x --key-file x
for value in "" 0 2 h -1h 1h30m 2H 3M 1y 0h now 99999d 2025-02-29 2025-13-01 2025-00-01 2025-1-1 25-01-01 2025-01-31T \
    2025-01-31T09 2025-01-31T24:00 2025-01-31T09:60 2025-01-31T09:30:60 2025-01-31T09:30:00. 2025-01-31T09:30+1 \
    2025-01-31T09:30z 2025-01-31T09:30+24:00 2025-01-31x 1969-12-31 1970-01-01T00:00Z 10000-01-01; do
    refused "--since wants a time such as" forget --yes "--since=$value"
    refused "--until wants a time such as" history "--until=$value"
done
for value in 0 -1 1.5 x; do refused "--limit wants" history "--limit=$value"; done
refused "is not UTF-8" generate "$(printf 'a\377')"
refused "is not UTF-8" record --response b --prompt "$(printf '\300\200')"
refused "something is missing" generate
refused "one argument too many" generate a b
refused "one argument too many" status now
refused "something is missing" import
refused "init wants --base" init

# ---- what contradicts itself ----

refused "forget what?" forget
refused "forget what?" forget --yes
refused "--all is everything" forget --all --app x --yes
refused "--json asks nothing" forget --all --json
refused "nothing lies between" forget --since 1h --until 2h --yes
refused "one argument too many" forget everything
refused "only shows" consent --recorded
refused "only shows" consent --app x
refused "--recorded is all that is there" consent give --recorded --app x
refused "--recorded is for consent give" consent withdraw --recorded --yes
refused "--json asks nothing" consent withdraw --json
refused 'did you mean "withdraw"?' consent witdraw
refused "give or withdraw" consent perhaps
refused "exclude each other" history --all --limit 3
refused "the text is not UTF-8" history "$(printf 'a\377')"
refused "standard output cannot have both" export - --json
refused "is of all examples" export x --format chat --app y
refused "is of all examples" export x --format preference --since 2h
refused "--format wants rows|chat|preference" export x --format csv
refused "something is missing" export
refused "something is missing" backup
refused "something is missing" restore
refused "--key-file is for a home with --encrypt" init --base x --key-file y
refused "exclude each other" record --prompt a --response b --private --cleared
refused "--tier wants person|imported|pasted|web|tool" record --prompt a --response b --tier robot
for option in "--source x" "--tier web" "--time 2h" --private --cleared "--session x"; do
    # shellcheck disable=SC2086
    refused "without --prompt and --response only" record $option
done
refused "go together" record --prompt a
refused "only one of" record --prompt - --response -
refused "exclude each other" record --prompt a --response b --consent --no-consent
refused "without --prompt and --response only" record --thumb up
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
for option in "--base x" "--rank 4" "--tokens 4" "--threads 1"; do
    # shellcheck disable=SC2086
    refused "bench record has no option ${option%% *}" bench record $option
done
for option in "--dir x" "--rate 1" --alone; do
    # shellcheck disable=SC2086
    refused "${option%% *} is for bench record" bench merge $option
done
for option in "--epochs 2" "--memory 1G" "--precision f32" "--out x"; do
    # shellcheck disable=SC2086
    refused "${option%% *} is for bench train" bench merge $option
done
for kind in train merge; do
    refused "--depth is for bench decode and bench prefill" bench $kind --depth 4
    refused "--kv is for bench decode and bench prefill" bench $kind --kv q8
done
refused "--rows is for bench train, bench record and bench governor" bench merge --rows 4
refused "bench record wants --rows N" bench record --rows some
refused "go with --rows FILE" bench train --out x
refused "--seconds says nothing" bench train --rows x --seconds 1
refused "auto|f32" bench train --precision f16

# ---- what is refused without a home, and where the home is looked for ----

for command in status train doctor "report --out $D/page" "history --nights" "import $D/rows" "generate x" "tokenize x" "adapters list" "adapters use 1" \
    "adapters rollback" "bench merge" "eval $D/rows" chat "record --prompt a --response b" history \
    "history a --since 2025-01-31T09:30:15.250+01:00 --until 1.5h" "forget --all --yes" "forget --id x --yes" consent \
    "consent give" "consent withdraw --yes" "export $D/new" "backup $D/new"; do
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
expect 1 restore "$D/nowhere" --home "$D/home"
err "$D/nowhere"
expect 1 restore "$D" --home "$D/home" --json
silent
checks=$((checks + 1))
[ ! -e "$D/home" ] || fail "a refused restore left a home"
expect 1 forget --all --home "$D/nowhere"
err "there is no terminal to ask on"
err "--yes"
expect 1 bench record --dir "$D/nowhere" --json
silent
err "$D/nowhere"
expect 0 bench record --dir "$D" --seconds 0.05 --rows 50 --json
json
key rows_per_s p50_us p99_us p999_us max_us loads processes queue direct rows seconds limits disk_mbytes_per_s \
    file_bytes_per_row queue_peak_mib peak_rss_mib
out '"rows": 50,'
expect 0 bench record --dir "$D" --seconds 0.05 --rows 50 --alone
out "flat out"
checks=$((checks + 1))
[ -z "$(find "$D" -name 'attune-bench*')" ] || fail "bench record left something behind"
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
# ---- what merging an adapter costs, on the tiny model ----

expect 0 init --home "$D/tiny" --base "$ROOT/tests/golden/tiny_llama.gguf" --consent
sed -e 's/^rank = .*/rank = 2/' -e 's/^epochs = .*/epochs = 3/' -e 's/^learning_rate = .*/learning_rate = 0.01/' -e 's/^\(reference_.*\) = .*/\1 = 100/' \
    -e 's/^max_tokens = .*/max_tokens = 160/' -e 's/^micro_tokens = .*/micro_tokens = 160/' \
    "$D/tiny/attune.conf" >"$D/conf" && cp "$D/conf" "$D/tiny/attune.conf"
head -n 12 "$ROOT/examples/personas/sailor.jsonl" >"$D/in"
expect 0 import --home "$D/tiny" -
expect 0 train --home "$D/tiny" --now --json
out '"published": true'
expect 0 adapters show 1 --home "$D/tiny" --json
json
key drift speed kl agreement loss_none lost
out '"merge": "q8", "speed": '
expect 0 adapters show 1 --home "$D/tiny"
out "What merging costs"
out "KL (nats)"

# ---- catalogs ----
refused 'the usage is: attune catalog' catalog list
refused 'catalog knows no "lst"; did you mean "list"?' catalog lst "$D/c"
refused '--rows is not for catalog list' catalog list "$D/c" --rows 3
refused 'wants --public-key' catalog list "$D/c"
refused 'wants --secret-key' catalog build "$D/c" --persona x.jsonl
refused '--task wants I/N' catalog build "$D/c" --persona x.jsonl --task 4/3
expect 0 catalog key "$D/key" --json
out '"public_key": "RW'
expect 1 catalog key "$D/key"
err 'exists already'
tiny=$ROOT/tests/golden/tiny_llama.gguf
for person in don nana; do
    grep -v '[\\]' "$ROOT/examples/personas/$person.jsonl" | sed 's/\("response": ".\{60\}\)[^"]*"/\1"/' >"$D/$person.jsonl"
done
for task in 1/2 2/2; do
    expect 0 catalog build "$D/c" --base "$tiny" --examples 56 --task $task --persona "$D/don.jsonl" \
        --persona "$D/nana.jsonl"
    out '1 trained'
done
expect 0 catalog build "$D/c" --base "$tiny" --examples 56 --secret-key "$D/key" --licence CC0-1.0 --origin test --json \
    --persona "$D/don.jsonl" --persona "$D/nana.jsonl"
out_is '{"trained": 0, "found": 2, "entries": 2}'
expect 0 catalog list "$D/c" --public-key "$D/key.pub"
out '  nana'
out '2 entries for the base'
expect 0 catalog verify "$D/c" --public-key "$D/key.pub" --base "$tiny"
out 'its 2 adapters are whole'
refused '--person is not for catalog list' catalog list "$D/c" --person x
expect 1 catalog select "$D/c" --public-key "$D/key.pub" --base "$tiny"
err 'a file of rows is needed'
expect 0 catalog select "$D/c" --public-key "$D/key.pub" --base "$tiny" --person "$D/don.jsonl" --examples 24 --method gradient
out 'resembles: don 1.00'
out '24 rows, by gradient'
file=$(sed -n 's/^The adapter of don is //p' "$D/out")
expect 0 eval "$D/don.jsonl" --base "$tiny" --adapter "$file" --examples 2
expect 0 catalog select "$D/c" --public-key "$D/key.pub" --base "$tiny" --person "$D/nana.jsonl" --examples 24 --method loss --json
out '{"method": "loss", "rows": 24, "judged": 72, "entries": [{"name": "nana", "gain": '
expect 0 catalog remove "$D/c" nana --secret-key "$D/key"
expect 0 catalog list "$D/c" --public-key "$D/key.pub" --json
out '"entries": 1, "list": [{"name": "don"'
printf x >>"$D/c/index.signed"
expect 1 catalog list "$D/c" --public-key "$D/key.pub"
err 'was changed or damaged'
rm -rf "$D/c" "$D/don.jsonl" "$D/nana.jsonl" "$D/key" "$D/key.pub"

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
out '"encrypted": false, "key_file": null'
expect 1 init --base "$ATTUNE_TEST_MODEL"
err "$D/home"
expect 0 status --json
json
out '"interactions": 0'
out '"run_state": null'
out '"encrypted": false, "locked": false'
key bytes examples_sft examples_preference examples_thumb private_rows findings not_derived not_indexed scrub_pending
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
out "\"duplicates\": $rows, \"forgotten\": 0, \"bad\": 0}"
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
expect 0 eval "$D/three" --json --rows
json
out '"rows": [{"row": 1, "nll": '
expect 0 eval "$D/three" --rows
out "nats a token, "
expect 0 eval "$D/three" --base "$ATTUNE_TEST_MODEL" --adapter base
out "of 3 examples"
expect 1 eval "$D/bad"
err "line 2"

expect 0 generate "Say hello." --max-tokens 8 --json
json
key text ids prompt_tokens prompt_seconds first_token_seconds seconds tokens_per_s reused_tokens drafted accepted \
    dropped_tokens open_seconds merge_seconds from_cache model merge
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
expect 0 generate "Say hello." --max-tokens 2 --alternatives 3 --json
json
checks=$((checks + 1))
[ "$(grep -o '"logprob": ' "$D/out" | wc -l)" -eq 8 ] || fail "generate: not two tokens with three alternatives each"
expect 0 generate "Say hello." --max-tokens 1 --json --bias 19556=-inf --bias "665=-0.5"
checks=$((checks + 1))
! grep -qF '"ids": [19556' "$D/out" || fail "generate: a token that is forbidden"
expect 1 generate "Say hello." --adapter 9
expect 1 generate "Say hello." --context 8
printf 'Hi.\n\n/help\nAnd?\n/quit\nNever.\n' >"$D/in"
expect 0 chat --max-tokens 2 --json --no-record
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
key tokens_per_s seconds seconds_load tokens peak_rss_mib limits gflops gbytes_per_s kernels threads bytes
expect 0 bench decode --depth 40 --tokens 4 --seconds 0.1 --json
json
key limit_share bytes
expect 0 bench prefill --tokens 40 --seconds 0.1 --json
json
key limit_share base arithmetic share limit_gflops
printf '{"prompt": "Who goes there?", "response": "A friend."}\n' >"$D/friend.jsonl"
expect 0 bench train --rows "$D/friend.jsonl" --out "$D/friend.gguf" --json
json
key tokens_per_s rows_per_s supervised_tokens supervised_tokens_per_s steps dropped_steps loss seconds_train limit_share \
    base arithmetic share limit_gflops seconds_limits peak_rss_mib
out '"rows": 1,'
expect 0 eval "$D/friend.jsonl" --base "$ATTUNE_TEST_MODEL" --adapter "$D/friend.gguf" --merge none
expect 1 bench train --rows "$D/friend.jsonl" --out "$D/friend.gguf"

# ---- what is kept: a home of its own ----

ATTUNE_HOME=$D/kept
expect 0 init --base "$ATTUNE_TEST_MODEL"
expect 0 history
out "Nothing is kept"
expect 0 history --json
out_is '{"interactions": [], "count": 0, "more": false}'
expect 0 forget --all --yes
out "nothing was deleted"
expect 0 consent --json
out_is '{"consent": false, "interactions": 0, "consented": 0}'

# times: a zone five hours east of Greenwich
TZ=EAST-5 expect 0 record --prompt "first" --response "one" --app clock --time 2025-01-31
TZ=EAST-5 expect 0 record --prompt "second" --response "two" --app clock --time 2025-01-31T09:30
expect 0 record --prompt "third" --response "three" --app clock --time 2025-01-31T09:30:15.25+01:00
TZ=EAST-5 expect 0 record --prompt "fourth" --response "four" --app clock --session hour --time "2025-01-31 14:00:01"
expect 0 history --app clock --json
json
for time in 1738263600000 1738297800000 1738312215250 1738314001000; do out "\"time\": $time,"; done
out '"count": 4,'
out '"more": false'
TZ=EAST-5 expect 0 history --since 2025-01-31T09:30 --until 2025-01-31T13:30:15.251 --json
out '"count": 2,'
out '"second"'
out '"third"'
TZ=EAST-5 expect 0 history --until 2025-01-31 --json
out '"count": 0,'
expect 0 history --since 2h --json
out '"count": 0,'
expect 0 record --prompt "The déjà vu of today" --response "Fresh bread." --session hour --source bakery --tier web \
    --private
expect 0 history --since 5m --json
out '"count": 1,'
out '"source": "bakery", "tier": "web", "sensitivity": "private", "consent": false,'
expect 0 history --session hour --limit 1 --json
out '"count": 1, "more": true}'
out 'today'
expect 0 history --limit 2
out "There are more"
TZ=EAST-5 expect 0 history --limit 4
out "2025-01-31 14:00  clock/hour  "
out "  > fourth"
out "  < four"
checks=$((checks + 1))
[ "$(grep -n '> fourth' "$D/out" | cut -d: -f1)" -lt "$(grep -n '> third' "$D/out" | cut -d: -f1)" ] ||
    fail "history: not the newest first"
expect 0 history --all
out "  > first"
expect 0 history "DEJA bread" --json
out '"count": 1,'
printf '"fresh bread"\n' >"$D/in"
expect 0 history - --json
out '"count": 1,'
expect 0 history "fo*" --json
out '"count": 1,'
expect 0 history nothingofthekind
out "Nothing is kept"
expect 1 history ""
expect 1 history --id 0194bbb2-1dc0-7ff4-9dd4-06834175288d
silent
expect 1 history --id nonsense

# text that would steer a terminal
hostile=$(printf 'red \033[31m title \033]0;owned\007 back\rover \177 \302\2332J \342\200\256desrever\342\201\246')
expect 0 record --prompt "$hostile
second line	tab" --response "$hostile" --app "$hostile" --session "$hostile" --source "$hostile" --thumb up \
    --edit "$hostile"
id=$(cat "$D/out")
expect 0 history --limit 1
tame
out "[31m"
out "* thumb up, edited"
checks=$((checks + 1))
[ "$(wc -l <"$D/out")" -eq 6 ] || fail "history: more than a line for a text"
[ "$(LC_ALL=C.UTF-8 wc -L <"$D/out")" -le 79 ] || fail "history: a line is too long"
expect 0 history --id "$id"
tame
out "    second line"
out "  user"
out "  assistant"
out "  consent         not given"
expect 0 history --id "$id" --json
json
tame
out '\u001B[31m'
out '\u009B2J'
out '\u202Edesrever'
out '"feedback": [{"kind": "thumb", "value": "up", "time": '
expect 0 forget --id "$id" --yes --json
json
out '"interactions": 1, "feedback": 2,'
expect 1 history --id "$id"

long=$(printf '海の上で%.0s' 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20)
expect 0 record --prompt "$long" --response "$long$long" --app "$long"
id=$(cat "$D/out")
expect 0 history --limit 1
out "…"
checks=$((checks + 1))
[ "$(LC_ALL=C.UTF-8 wc -L <"$D/out")" -eq 79 ] || fail "history: a line is not cut to 79 columns"
expect 0 history --id "$id"
out "$long$long"
expect 0 forget --id "$id" --yes

# out and in again
expect 0 export "$D/rows.jsonl" --json
json
out '"format": "rows", "lines": 5}'
checks=$((checks + 1))
[ "$(stat -c %a "$D/rows.jsonl")" = 600 ] || fail "export: others may read it"
expect 1 export "$D/rows.jsonl"
err "$D/rows.jsonl"
expect 0 export -
checks=$((checks + 1))
cmp -s "$D/out" "$D/rows.jsonl" || fail "export: standard output and the file differ"
expect 0 export - --app clock --since 2025-01-31T08:00Z
checks=$((checks + 1))
[ "$(wc -l <"$D/out")" -eq 2 ] || fail "$what: not two lines"
expect 0 history --all --json
cp "$D/out" "$D/kept.json"
expect 0 init --base "$ATTUNE_TEST_MODEL" --home "$D/copy"
expect 0 import "$D/rows.jsonl" --home "$D/copy" --json
out '"rows": 5,'
expect 0 history --all --json --home "$D/copy"
checks=$((checks + 1))
cmp -s "$D/out" "$D/kept.json" || fail "export and import: another history"
expect 0 consent give --recorded --json
json
out '"consent": true,'
expect 0 record --prompt "Which?" --response "The worse." --edit "The better."
expect 0 export - --format chat
out '{"messages":['
out "The better."
expect 0 export - --format preference
out '"chosen":[{"role":"assistant","content":"The better."}],"rejected":[{"role":"assistant","content":"The worse."}]}'
checks=$((checks + 1))
[ "$(wc -l <"$D/out")" -eq 1 ] || fail "$what: not one line"
if [ -e /dev/full ]; then
    checks=$((checks + 1))
    what="attune export - to a full disk"
    "$ATTUNE" export - >/dev/full 2>"$D/err"
    [ $? -eq 1 ] || fail "$what: exit code"
    checks=$((checks + 1))
    what="attune history to a full disk"
    "$ATTUNE" history >/dev/full 2>"$D/err"
    [ $? -eq 1 ] || fail "$what: exit code"
fi

# a disk that takes no more (files end at 100 KiB): no id, for there is no row
checks=$((checks + 1))
what="attune record to a full disk"
head -c 1000000 /dev/zero | tr '\000' x >"$D/in"
(
    trap '' XFSZ
    ulimit -f 200
    exec "$ATTUNE" record --prompt a --response - <"$D/in" >"$D/out" 2>"$D/err"
)
[ $? -eq 1 ] || fail "$what: exit code"
: >"$D/in"
silent
err "attune: "

# ---- bad lines, and what was forgotten once ----

for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23; do
    printf '{"prompt": "bad %d"}\n' "$n"
done >"$D/bad"
expect 1 import "$D/bad" --keep-going
err "every line is bad"
err "attune: 3 more lines are bad"
checks=$((checks + 1))
[ "$(grep -c 'line [0-9]' "$D/err")" -eq 20 ] || fail "$what: not twenty lines are named"
printf '{"prompt": "A good one", "response": "indeed"}\n' >>"$D/bad"
expect 1 import "$D/bad"
silent
expect 0 import "$D/bad" --keep-going --json
json
out_is '{"rows": 1, "feedback": 0, "duplicates": 0, "forgotten": 0, "bad": 23}'
err "line 1"
expect 0 import "$D/bad" --keep-going
out "23 lines that are bad"
expect 0 forget --app import --yes --json
out '"interactions": 1,'
expect 0 import "$D/bad" --keep-going --json
out '"rows": 0, "feedback": 0, "duplicates": 0, "forgotten": 1,'
expect 0 import "$D/bad" --keep-going
out "--forgotten takes them"
expect 0 import "$D/bad" --keep-going --forgotten --json
out '"rows": 1,'

# ---- what is kept out of training ----

expect 0 record --prompt "Write to her" --response "Write to jane.roe@example.org today." --app findings
expect 0 record --prompt "Cleared" --response "Write to info@example.org today." --cleared --app findings
expect 0 export - --format chat
checks=$((checks + 1))
! grep -q jane.roe "$D/out" || fail "$what: an e-mail address is to be learned"
out "info@example.org"
expect 0 status --json
json
out '"email": 1,'
out '"not_derived": 0,'
checks=$((checks + 1))
! grep -q jane.roe "$D/out" || fail "$what: shows what it found"
expect 0 status
out "e-mail address: 1"
out "not encrypted"

# ---- consent ----

expect 0 consent give
out "may be trained on"
expect 0 consent withdraw --app clock --yes --json
json
out '"changed": 4, "adapters_revoked": 0, "active_before": 0, "active_after": 0,'
out '"consent": true,'
expect 0 consent give --app clock --until 2025-01-31T05:00Z --json
out '"changed": 2}'
expect 1 consent withdraw
err "there is no terminal to ask on"
expect 0 consent withdraw --yes
out "lost consent"
expect 0 consent
out "not given"
out "0 of "
expect 0 consent give --json
out '"consent": true,'
out '"consented": 0,'
expect 0 consent withdraw --yes --json
out '"consent": false,'

# ---- forgetting ----

expect 0 record --prompt "Where is the CANARYBIRD?" --response "In the CANARYCAGE." --app bird \
    --edit "In the CANARYTREE."
id=$(cat "$D/out")
expect 0 record --prompt "Another one" --response "No bird." --app bird
expect 0 history canarytree --json
out '"count": 1,'
checks=$((checks + 1))
LC_ALL=C grep -rqF CANARYCAGE "$ATTUNE_HOME" || fail "the canary is not in the home: nothing can be proven by it"
expect 1 forget --match canarytree
err "there is no terminal to ask on"
printf 'y\n' >"$D/in"
expect 1 forget --match canarytree
silent
expect 1 forget --match "" --yes
silent
expect 1 forget --match "?!" --yes
expect 1 forget --id 0194bbb2-1dc0-7ff4-9dd4-06834175288d --yes
expect 0 forget --match canarytree --app nobody --yes --json
out '"interactions": 0, "feedback": 0, "examples": 0, "adapters_revoked": 0, "active_before": 0, "active_after": 0, '
if command -v script >/dev/null; then
    terminal 1 n forget --app bird
    out "2 interactions, the newest first:"
    out "  bird  Another one"
    out "  bird  Where is the CANARYBIRD?"
    out "Delete them for good? [y/N] "
    out "attune: nothing was changed"
    terminal 1 "" forget --app bird
    terminal 1 yesterday forget --app bird
    terminal 2 y forget --app bird --json
    terminal 0 y forget --app nobody
    out "nothing was changed"
    terminal 1 n consent withdraw --app bird
    out "Withdraw consent"
    expect 0 history --app bird --json
    out '"count": 2,'
    expect 0 record --prompt "$hostile" --response "$hostile" --app "$hostile"
    terminal 0 y forget --since 1m --match owned
    tame
    out "1 interaction deleted"
else
    echo "there is no program script: what asks on a terminal is left out"
fi
printf 'canarytree\n' >"$D/in"
expect 0 forget --match - --yes
out "1 interaction deleted, with 1 feedback"
out "No adapter had learned"
expect 1 history --id "$id"
expect 0 history canarybird --json
out '"count": 0,'
nowhere CANARY "$ATTUNE_HOME"
nowhere canarycage "$ATTUNE_HOME"
expect 0 forget --all --yes --json
expect 0 history --json
out '"count": 0,'
nowhere "Fresh bread" "$ATTUNE_HOME"
expect 0 doctor

# ---- an encrypted home, and its backup ----

ATTUNE_HOME=$D/sealed
key=$HOME/.config/attune/sealed.key
expect 0 init --base "$ATTUNE_TEST_MODEL" --consent --encrypt
out "$key"
out "loses the key"
checks=$((checks + 1))
[ "$(stat -c %a "$key" "$(dirname "$key")" | tr '\n' ' ')" = "600 700 " ] || fail "others may look at the key"
expect 1 init --base "$ATTUNE_TEST_MODEL" --encrypt --home "$D/another/sealed"
err "a key is there already"
err "--key-file"
checks=$((checks + 1))
[ ! -e "$D/another" ] || fail "a refused init left a home"
expect 0 record --prompt "Where is the CANARYBIRD?" --response "In the CANARYCAGE." --app bird \
    --edit "In the CANARYTREE."
expect 0 import "$D/three"
expect 0 history canarytree --json
out '"count": 1,'
expect 0 status --json
json
out '"encrypted": true, "locked": false,'
expect 0 status
out ", encrypted"
nowhere CANARY "$ATTUNE_HOME"
nowhere "$(cat "$key")" "$ATTUNE_HOME"
expect 0 history --all --json
cp "$D/out" "$D/kept.json"

expect 0 backup "$D/backup" --json
json
key home path
expect 1 backup "$D/backup"
err "$D/backup"
nowhere CANARY "$D/backup"
nowhere "$(cat "$key")" "$D/backup"
expect 1 restore "$D/backup"
err "$ATTUNE_HOME"
expect 0 forget --app bird --yes
expect 0 restore "$D/backup" --home "$D/back" --json
json
out "\"home\": \"$D/back\""
out '"base_ok": true,'
expect 0 history --all --json --home "$D/back"
checks=$((checks + 1))
cmp -s "$D/out" "$D/kept.json" || fail "backup and restore: another history"
cp "$ATTUNE_TEST_MODEL" "$D/moved.gguf"
expect 0 restore "$D/backup" --home "$D/back2" --base "$D/moved.gguf"
out "$D/moved.gguf"
expect 1 restore "$D/backup" --home "$D/back3" --base "$D/bad.gguf"
checks=$((checks + 1))
[ ! -e "$D/back3/attune.conf" ] || fail "a refused restore left a home"
rm "$D/moved.gguf"

mv "$key" "$D/key"
for command in "history" "record --prompt a --response b" "import $D/three" "export $D/new" "forget --all --yes" \
    "consent withdraw --yes" "consent give"; do
    # shellcheck disable=SC2086
    expect 1 $command
    silent
    err "--key-file"
done
checks=$((checks + 1))
[ ! -e "$D/new" ] || fail "export without the key left a file"
expect 0 status --json
json
out '"interactions": 3,'
out '"encrypted": true, "locked": true, "bytes": null,'
expect 0 status
out "--key-file FILE shows more"
expect 0 consent
expect 0 doctor
printf '%064d\n' 0 >"$D/wrong"
chmod 600 "$D/wrong"
for command in history "status --json" "forget --all --yes"; do
    # shellcheck disable=SC2086
    expect 1 $command --key-file "$D/wrong"
    silent
    # shellcheck disable=SC2086
    expect 1 $command --key-file "$D/nowhere"
    err "$D/nowhere"
done
expect 0 history --key-file "$D/key" --json
out '"count": 3,'
expect 0 record --prompt a --response b --key-file "$D/key"
expect 3 train --now --time 0.001s --key-file "$D/key"
expect 1 history --home "$D/copy" --key-file "$D/key"
err "not encrypted"
expect 0 init --base "$ATTUNE_TEST_MODEL" --encrypt --key-file "$D/key" --home "$D/same" --json
json
out "\"encrypted\": true, \"key_file\": \"$D/key\"}"
expect 0 init --base "$ATTUNE_TEST_MODEL" --encrypt --key-file "$D/key2" --home "$D/own"
checks=$((checks + 1))
[ "$(stat -c %a "$D/key2")" = 600 ] || fail "others may look at the key"
XDG_CONFIG_HOME=$D/config expect 0 init --base "$ATTUNE_TEST_MODEL" --encrypt --home "$D/folder/mine/"
out "$D/config/attune/mine.key"
mkdir "$D/inside"
expect 0 init --base "$ATTUNE_TEST_MODEL" --encrypt --home "$D/inside" --key-file "$D/inside/key"
err "the key lies in the home"
finish
