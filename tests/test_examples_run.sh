#!/bin/sh
# The programs of the guides do what the guides say, on the tiny model; and each line of C in README.md and the
# guides stands in one of them.
#
#   sh tests/test_examples_run.sh ATTUNE EXAMPLES_BUILD_DIR [SOURCE_DIR]
set -eu
attune=$1
built=$2
root=${3:-$(cd "$(dirname "$0")/.." && pwd)}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset ATTUNE_FAULT ATTUNE_FAULT_LIST
LC_ALL=C
export LC_ALL
home=$work/home

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
field() { "$attune" status --home "$home" --json | sed -n "s/.*\"$1\": *\"\{0,1\}\([^,\"}]*\).*/\1/p"; }
is() { [ "$(field "$1")" = "$2" ] || fail "$3: $1 is $(field "$1"), not $2"; }

# ---- the lines of C in the texts ----
cat "$root"/examples/*.c | sed 's/^ *//' | sort -u >"$work/known"
awk 'FNR == 1 { c = 0 } /^```/ { c = $0 == "```c"; next } c && NF { sub(/^ */, ""); print }' \
    "$root/README.md" "$root"/docs/guide-*.md | sort -u >"$work/quoted"
[ -s "$work/quoted" ] || fail "no line of C found in README.md and the guides"
comm -13 "$work/known" "$work/quoted" >"$work/strange"
[ ! -s "$work/strange" ] || fail "quoted, but in no example: $(cat "$work/strange")"

# ---- a home with few settings, whatever powers this machine ----
"$attune" init --home "$home" --base "$root/tests/golden/tiny_llama.gguf" --consent >/dev/null
sed 's/^rank = .*/rank = 2/; s/^learning_rate = .*/learning_rate = 0.01/; s/^\(reference_.*\) = .*/\1 = 100/; s/^max_tokens = .*/max_tokens = 400/
    s/^micro_tokens = .*/micro_tokens = 400/; s/^charger = .*/charger = ignored/; s/^battery_min = .*/battery_min = 0/
    s/^window = .*/window = always/; s/^idle = .*/idle = ignored/; s/^temperature_max = .*/temperature_max = 0/
    s/^pressure_\([a-z]*\) = .*/pressure_\1 = 0/; s/^memory_free = .*/memory_free = none/' \
    "$home/attune.conf" >"$work/conf" && cp "$work/conf" "$home/attune.conf"

# ---- an app records ----
"$built/record_feedback" "$home" >"$work/out" || fail "record_feedback: $(cat "$work/out")"
grep -q '^2 interactions, 2 with consent, 2 feedback, 0 dropped$' "$work/out" || fail "record_feedback said: $(cat "$work/out")"
grep -q '^forgotten 1, 0 adapters revoked$' "$work/out" || fail "record_feedback said: $(cat "$work/out")"
is examples_new 1 "of an edit and a rejection one is learned"

# ---- the nightly job: not yet, then a run ----
code=0
"$built/nightly_job" "$home" >"$work/out" 2>"$work/err" || code=$?
[ $code = 3 ] && grep -q '^waiting: ' "$work/out" || fail "nightly_job with one prompt gave $code: $(cat "$work/out" "$work/err")"
head -n 16 "$root/examples/personas/sailor.jsonl" | "$attune" import --home "$home" - >/dev/null
"$built/nightly_job" "$home" >"$work/out" 2>"$work/err" || fail "nightly_job: $(cat "$work/out" "$work/err")"
grep -q '^published: ' "$work/out" || fail "nightly_job said: $(cat "$work/out")"
is active_adapter 1 "after the nightly job"

# ---- a slice of a night, on a device that the app tells of ----
sed 's/^charger = .*/charger = required/; s/^battery_min = .*/battery_min = 30/' "$home/attune.conf" >"$work/conf" &&
    cp "$work/conf" "$home/attune.conf"
code=0
"$built/night_slice" "$home" 80 unplugged >"$work/out" 2>"$work/err" || code=$?
[ $code = 3 ] && grep -q '^waiting: not on a charger' "$work/out" || fail "night_slice unplugged gave $code: $(cat "$work/out" "$work/err")"
code=0
"$built/night_slice" "$home" 20 >"$work/out" 2>"$work/err" || code=$?
[ $code = 3 ] && grep -q '^waiting: .*battery' "$work/out" || fail "night_slice at 20 % gave $code: $(cat "$work/out" "$work/err")"
head -n 40 "$root/examples/personas/sailor.jsonl" | "$attune" import --home "$home" - >/dev/null
"$built/night_slice" "$home" 80 >"$work/out" 2>"$work/err" || fail "night_slice: $(cat "$work/out" "$work/err")"
grep -q '^published: \|^refused: ' "$work/out" || fail "night_slice said: $(cat "$work/out")"

# ---- an app asks, and records what was answered ----
before=$(field interactions)
"$built/ask" "$home" "What is a fjord?" >"$work/out" 2>"$work/err" || fail "ask: $(cat "$work/err")"
# an empty answer, which this model may well give, is not recorded
[ "$(tr -d '\n' <"$work/out")" = "" ] || before=$((before + 1))
is interactions "$before" "after ask"
"$built/ask" "$work/nowhere" "What is a fjord?" >"$work/out" 2>"$work/err" && fail "ask did not miss the home"
grep -q 'no attune home there' "$work/err" || fail "ask without a home said: $(cat "$work/err")"
echo "the examples do what the guides say"
