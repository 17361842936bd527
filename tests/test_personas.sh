#!/bin/sh
# The personas of examples/ are fit to learn a voice from: enough rows on enough subjects, and no phrase that
# a model could pick up by heart in place of the voice.
#
#   sh tests/test_personas.sh                 first that every rule can fail, then examples/personas
#   sh tests/test_personas.sh --folder DIR    that folder alone
set -eu
LC_ALL=C
export LC_ALL
here=$(cd "$(dirname "$0")" && pwd)

# One file of rows: {"topic": "...", "prompt": "...", "response": "..."}, a row a line.
check_file() {
    awk '
        # The value of a key as it stands in the file, escapes kept; "" when it is missing.
        function value(key, at) {
            if (!match($0, "\"" key "\": *\"([^\"\\\\]|\\\\.)*\"")) return ""
            at = substr($0, RSTART, RLENGTH)
            sub("^\"" key "\": *\"", "", at)
            return substr(at, 1, length(at) - 1)
        }
        function wrong(message) { printf "%s:%d: %s\n", FILENAME, NR, message }
        # Eight words in a row; each is counted once an answer.
        function count_phrases(text, words, n, i, j, phrase) {
            gsub(/\\[nrt]/, " ", text)
            n = split(tolower(text), words, " ")
            for (i = 1; i + 7 <= n; i++) {
                phrase = words[i]
                for (j = 1; j < 8; j++) phrase = phrase " " words[i + j]
                if (seen[phrase] == NR) continue
                seen[phrase] = NR
                if (++answers[phrase] == 4) wrong("in more than 3 answers: " phrase)
            }
        }
        {
            if ($0 !~ /^[{].*[}]$/) wrong("not a JSON object on a line of its own")
            topic = value("topic"); prompt = value("prompt"); response = value("response")
            if (topic == "" || prompt == "" || response == "") { wrong("topic, prompt or response is missing"); next }
            rows++
            if (!(topic in topics)) n_topics++
            topics[topic] = 1
            if (response in responses) wrong("the response of line " responses[response] " again")
            responses[response] = NR
            count_phrases(response)
        }
        END {
            if (rows != 150) wrong("has " rows + 0 " rows, not 150")
            if (n_topics < 100) wrong("has " n_topics + 0 " topics, fewer than 100")
        }' "$1"
}

check_folder() {
    n=0
    for file in "$1"/*.jsonl; do
        [ -f "$file" ] || continue
        n=$((n + 1))
        check_file "$file"
    done
    [ "$n" -ge 4 ] || printf '%s: has %s personas, fewer than 4\n' "$1" "$n"
}

# ---- every rule fails on rows that break it ----

rows() {
    awk -v n="$1" -v topics="$2" 'BEGIN {
        for (i = 1; i <= n; i++)
            printf "{\"topic\": \"t%d\", \"prompt\": \"say \\\"p%d\\\"\", \"response\": \"a%d b%d c d e f g h i%d\"}\n",
                i % topics, i, i, i, i
    }'
}

fit() {
    for name in one two three four; do rows 150 100 >"$small/$name.jsonl"; done
}

# refused WORDS: the folder as it is now, in these words.
refused() {
    check_folder "$small" >"$small/said"
    grep -qF "$1" "$small/said" || {
        printf 'self-check: was not refused as "%s"\n' "$1"
        cat "$small/said"
    }
    fit
}

self_check() {
    small=$(mktemp -d)
    trap 'rm -rf "$small"' EXIT
    fit
    check_folder "$small" | sed 's/^/self-check: what is fit was refused: /'
    rm "$small/two.jsonl"
    refused 'has 3 personas, fewer than 4'
    rows 149 100 >"$small/two.jsonl"
    refused 'has 149 rows, not 150'
    : >"$small/two.jsonl"
    refused 'has 0 rows, not 150'
    rows 150 99 >"$small/two.jsonl"
    refused 'has 99 topics, fewer than 100'
    rows 150 100 | sed '7s/"response"/"answer"/' >"$small/two.jsonl"
    refused 'two.jsonl:7: topic, prompt or response is missing'
    rows 150 100 | sed '9s/"a9 b9\(.*\)i9"/"a8 b8\1i8"/' >"$small/two.jsonl"
    refused 'two.jsonl:9: the response of line 8 again'
    rows 150 100 | sed '20,23s/c d e f g h i/A\\nb c d e F g h i/' >"$small/two.jsonl"
    refused 'two.jsonl:23: in more than 3 answers: a b c d e f g h'
    rows 150 100 | sed '5s/}$//' >"$small/two.jsonl"
    refused 'two.jsonl:5: not a JSON object'
    rows 150 100 | sed '20,22s/c d e f g h i/a b c d e f g h i/' >"$small/two.jsonl"
    check_folder "$small" | sed 's/^/self-check: three times is allowed: /'
    rm -rf "$small"
}

if [ "${1:-}" = --folder ]; then
    found=$(check_folder "${2:?--folder wants a folder}")
else
    found=$(self_check)
    [ -n "$found" ] || found=$(check_folder "$here/../examples/personas")
fi
if [ -n "$found" ]; then
    printf '%s\n' "$found"
    exit 1
fi
echo "the personas are fit to learn from"
