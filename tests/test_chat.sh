#!/bin/sh
# attune chat from outside: what its commands do to the store, and to a person at a terminal.
# usage: test_chat.sh PATH_OF_ATTUNE [ROOT_OF_THE_REPOSITORY]
# The part with a terminal needs python3, without packages. With ATTUNE_TEST_MODEL set, an answer is interrupted, too.
set -u

ATTUNE=${1:?usage: test_chat.sh PATH_OF_ATTUNE [ROOT]}
ROOT=${2:-$(dirname "$0")/..}
case $ATTUNE in /*) ;; *) ATTUNE=$PWD/$ATTUNE ;; esac
case $ROOT in /*) ;; *) ROOT=$PWD/$ROOT ;; esac
D=$(mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
trap 'exit 1' HUP INT TERM
unset ATTUNE_HOME XDG_DATA_HOME XDG_CONFIG_HOME XDG_RUNTIME_DIR VISUAL EDITOR
HOME=$D/user TMPDIR=$D/tmp TERM=xterm
export HOME TMPDIR TERM
mkdir "$HOME" "$TMPDIR"
BASE=$ROOT/tests/golden/tiny_llama.gguf
checks=0 failures=0

fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
    sed 's/^/  out: /' "$D/out" | head -5
    sed 's/^/  err: /' "$D/err" | head -8
}

# A home of its own, and a chat in it.
new_home() {
    rm -rf "$D/home"
    "$ATTUNE" init --base "$BASE" --home "$D/home" "$@" >/dev/null || fail "init"
}
# chat CODE OPTIONS: what is said is on standard input, a message or a command a line.
chat() {
    code=$1
    shift
    checks=$((checks + 1))
    what="attune chat $*"
    "$ATTUNE" chat --max-tokens 3 "$@" >"$D/out" 2>"$D/err"
    got=$?
    [ "$got" -eq "$code" ] || fail "$what: exit code $got, not $code"
}
has() {
    checks=$((checks + 1))
    grep -qF -e "$2" "$D/$1" || fail "$what: no \"$2\" in $1"
}
lacks() {
    checks=$((checks + 1))
    ! grep -qF -e "$2" "$D/$1" || fail "$what: \"$2\" in $1"
}
# Everything that is kept, an interaction a line, the newest first, times and ids taken out.
history() {
    "$ATTUNE" history --all --json --home "$D/home" | sed -e 's/"time": [0-9]*/T/g' -e 's/}, {"id"/}\n{"id"/g' >"$D/all"
}
kept() { # kept NUMBER: of interactions
    checks=$((checks + 1))
    history
    [ "$(grep -c '"response"\|"role": "assistant"' "$D/all")" -eq "$1" ] || fail "$what: not $1 interactions are kept"
}
answers() {
    checks=$((checks + 1))
    [ "$(grep -c '^{"text": ' "$D/out")" -eq "$1" ] || fail "$what: not $1 answers"
}

# ---- recorded, or not ----

new_home --consent
chat 0 --home "$D/home" --json <<'END'
Good morning
END
answers 1
has err "This is recorded in $D/home, and may be learned from"
kept 1
has all '"app": "attune chat"'
has all '"consent": true'
has all 'Good morning'
checks=$((checks + 1))
id=$(sed 's/.*"id": "\([-0-9a-f]*\)".*/\1/' "$D/out")
grep -qF "$id" "$D/all" || fail "$what: the answer's id is not the interaction's"
checks=$((checks + 1))
sha=$(sha256sum "$BASE" | cut -d' ' -f1)
grep -qF "\"model\": \"$sha\"" "$D/all" || fail "$what: the base is not named"

new_home
chat 0 --home "$D/home" --no-record <<'END'
Good morning
/thumbs up
END
has err "Nothing of this is recorded"
kept 0
chat 0 --base "$BASE" --home "$D/home" <<'END'
Good morning
END
has err "Nothing of this is recorded"
kept 0
chat 0 --home "$D/home" <<'END'
Good morning
END
has err "not learned from"
has err "attune consent give"
kept 1
has all '"consent": false'

# ---- what was made of an answer ----

new_home
chat 0 --home "$D/home" <<'END'
One
/thumbs up
/thumbs down
END
kept 1
has all '[{"kind": "thumb", "value": "up", T}, {"kind": "thumb", "value": "down", T}]'

# an edit: the conversation goes on from it
new_home
chat 0 --home "$D/home" <<'END'
One
/edit A better answer
Two
END
kept 2
has all '"kind": "edit", "text": "A better answer"'
checks=$((checks + 1))
head -1 "$D/all" | grep -qF '{"role": "assistant", "content": "A better answer"}, {"role": "user", "content": "Two"}' ||
    fail "$what: not from the edit"

# in an editor, which sees the answer, alone, and leaves nothing behind
new_home
printf '#!/bin/sh\nls -ld "$1" "${1%%/*}" >"%s/seen"; cp "$1" "%s/answer"; printf "Edited\\nby hand\\n" >"$1"; : >"$1~"\n' \
    "$D" "$D" >"$D/editor"
chmod +x "$D/editor"
EDITOR=$D/editor chat 0 --home "$D/home" <<'END'
One
/edit
END
kept 1
has all '"kind": "edit", "text": "Edited\nby hand"'
checks=$((checks + 3))
grep -q '^-rw-------' "$D/seen" && grep -q '^drwx------' "$D/seen" || fail "/edit: others may read the text"
head -1 "$D/out" | cmp -s - "$D/answer" || fail "/edit: the editor does not see the answer"
[ -z "$(ls "$TMPDIR")" ] || fail "/edit: something is left of it"
EDITOR=true chat 0 --home "$D/home" <<'END'
Two
/edit
END
kept 2
checks=$((checks + 1))
[ "$(grep -c '"kind": "edit"' "$D/all")" -eq 1 ] || fail "/edit: an edit that changed nothing is kept"
EDITOR=false chat 1 --home "$D/home" <<'END'
Three
/edit
END
has err "the editor failed: false"
checks=$((checks + 1))
[ -z "$(ls "$TMPDIR")" ] || fail "/edit: something is left of a failed one"
chat 1 --home "$D/home" <<'END'
Four
/edit
END
has err '$VISUAL'

# taken back: a thumb, an edit, then the turn
new_home
chat 0 --home "$D/home" <<'END'
One
Two
/thumbs up
/edit Mine
/undo
/undo
/undo
Three
END
kept 3
has all '[{"kind": "thumb", "value": "up", T}, {"kind": "edit", "text": "Mine", T}, {"kind": "undo", T}, {"kind": "undo", T}]'
checks=$((checks + 2))
head -1 "$D/all" | grep -qF '"content": "Three"' || fail "/undo: no third turn"
head -1 "$D/all" | grep -qF '"content": "Two"' && fail "/undo: the turn is still in the conversation"
new_home
chat 1 --home "$D/home" <<'END'
/undo
END
has err "nothing to take back"

# another answer, and back to the one before
new_home
chat 0 --home "$D/home" --json <<'END'
One
/regenerate
/regenerate
Two
END
answers 4
kept 4
checks=$((checks + 2))
[ "$(grep -c '"kind": "regenerate"' "$D/all")" -eq 2 ] || fail "/regenerate: not two answers are refused"
[ "$(grep -o '^{"text": "[^"]*"' "$D/out" | head -3 | sort -u | wc -l)" -eq 3 ] || fail "/regenerate: the same answer"
new_home
chat 0 --home "$D/home" --json <<'END'
One
/regenerate
/undo
/thumbs up
END
kept 2
has all '[{"kind": "regenerate", T}, {"kind": "undo", T}, {"kind": "thumb", "value": "up", T}]'

# ---- conversations ----

new_home
chat 0 --home "$D/home" --system "Be kind." <<'END'
One
/new
Two
/system Be brief.
Three
/system
//quit
END
kept 4
has all '{"role": "system", "content": "Be kind."}, {"role": "user", "content": "One"}'
has all '{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Two"}'
has all '{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Two"}'
has all '{"role": "user", "content": "/quit"}'
checks=$((checks + 2))
[ "$(grep -o '"session": "[^"]*"' "$D/all" | sort -u | wc -l)" -eq 2 ] || fail "/new: not two conversations"
head -1 "$D/all" | grep -qF '"role": "system"' && fail "/system: still there"

new_home
chat 0 --home "$D/home" <<END
One
/edit Uno
/save $D/talk
END
checks=$((checks + 1))
[ "$(stat -c %a "$D/talk")" = 600 ] || fail "/save: others may read it"
chat 0 --home "$D/home" <<END
/load $D/talk
/thumbs up
Two
/save $D/talk
END
kept 2
has all '[{"kind": "edit", "text": "Uno", T}, {"kind": "thumb", "value": "up", T}]'
checks=$((checks + 2))
head -1 "$D/all" | grep -qF '"content": "Uno"}, {"role": "user", "content": "Two"}' || fail "/load: other words"
[ "$(grep -o '"session": "[^"]*"' "$D/all" | sort -u | wc -l)" -eq 1 ] || fail "/load: another conversation"
chat 0 --home "$D/home" <<END
/load $D/talk
Three
END
kept 3
checks=$((checks + 1))
head -1 "$D/all" | grep -qF '"content": "Two"}, ' || fail "/load: a state that does not hold the words"
for bad in '' '{' '[]' '{"messages": 1}' '{"messages": [{"role": "user"}]}' \
    '{"messages": [{"role": "user", "content": "private words"}]}' \
    '{"messages": [{"role": "user", "content": "private words"}, {"role": "user", "content": "b"}]}' \
    '{"messages": [{"role": "assistant", "content": "b"}]}' '{"messages": ["private words'; do
    printf '%s' "$bad" >"$D/bad"
    chat 1 --home "$D/home" <<END
/load $D/bad
END
    has err "$D/bad"
    lacks err "private words"
done
chat 1 --home "$D/home" <<END
One
/save $D/nowhere/talk
END
has err "No such file or directory"

# ---- mistakes end a pipe's chat ----

for line in /thumbs "/thumbs up" /edit /regenerate "/new x" /save "/save x" /load "/load $D/nowhere" /thmbs /nonsense; do
    chat 1 --home "$D/home" --no-record <<END
$line
Never
END
    has err "attune: "
    answers 0
done
chat 1 --home "$D/home" --no-record <<'END'
/thmbs up
END
has err "did you mean /thumbs?"
chat 1 --home "$D/home" --no-record <<'END'
Hello
/thumbs sideways
END
printf 'a\377b\n' | chat 1 --home "$D/home" --no-record
has err "not UTF-8"
printf 'a\000b\n' | chat 1 --home "$D/home" --no-record
has err "NUL"
printf '/help\n\n   \nHello' | chat 0 --home "$D/home" --no-record --json
has err "/regenerate"
answers 1

# ---- an encrypted home ----

new_home --encrypt --key-file "$D/key"
chat 0 --home "$D/home" <<'END'
A secret of mine
/edit Another secret
END
kept 1
has all "Another secret"
checks=$((checks + 1))
! LC_ALL=C grep -rqF "secret" "$D/home" || fail "a secret lies in the home as it is"
mv "$D/key" "$D/other"
chat 1 --home "$D/home" <<'END'
More
END
has err "attune: "
chat 0 --home "$D/home" --key-file "$D/other" <<'END'
More
END

# ---- at a terminal ----

command -v python3 >/dev/null || {
    printf 'no python3: the terminal is left out; %d checks, %d failures\n' "$checks" "$failures"
    [ "$failures" -eq 0 ]
    exit
}
# Types what is given in Python's notation, each piece after the next prompt, "now PIECE" at once; "await TEXT" types
# nothing. The chat ends with it.
type_in() {
    checks=$((checks + 1))
    what="attune chat at a terminal"
    python3 - "$ATTUNE" "$prompt" "$@" >"$D/out" 2>"$D/err" <<'END' || fail "$what: it does not end"
import os, pty, select, signal, sys, time

program, home, options, pieces = sys.argv[1], sys.argv[3], sys.argv[4].split(), sys.argv[5:]
prompt = sys.argv[2].encode().decode("unicode_escape").encode()
child, master = pty.fork()
if child == 0:
    os.execv(program, [program, "chat", "--home", home, *options])
seen, until = b"", time.time() + 100


def wait_for(what):
    """Until it was written; what comes after it is kept for the next time."""
    global seen
    while what not in seen:
        if time.time() > until or not select.select([master], [], [], 100)[0]:
            sys.exit(f"no {what!r} in {seen[-200:]!r}")
        try:
            more = os.read(master, 4096)
        except OSError:  # the other end is closed
            more = b""
        if not more:
            sys.exit(f"the end, but no {what!r} in {seen[-200:]!r}")
        sys.stdout.buffer.write(more)
        seen += more
    seen = seen.split(what, 1)[1]


for piece in pieces:
    if piece.startswith("await "):
        wait_for(piece[6:].encode().decode("unicode_escape").encode())
        continue
    if not piece.startswith("now "):
        wait_for(prompt)
    os.write(master, piece.removeprefix("now ").encode().decode("unicode_escape").encode("latin-1"))
while True:
    if time.time() > until or not select.select([master], [], [], 100)[0]:
        os.kill(child, signal.SIGKILL)
        sys.exit("it awaits more than was typed")
    try:
        if not os.read(master, 4096):
            break
    except OSError:
        break
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
END
}
has_line_editing() { ldd "$ATTUNE" | grep -q libedit; }
# The editor draws its prompt again when it likes, and before it takes the terminal over, which would keep control
# characters typed that early; it asks for marks around what is pasted once, when it awaits the first key of a line.
prompt='> ' taken='\r\n'
! has_line_editing || prompt='\x1b[?2004h' taken='\x1b[?2004l'

BASE=$ROOT/tests/golden/tiny_llama.gguf
new_home
type_in "$D/home" "--max-tokens 3" 'Hello\r' '/thumbs up\r' '/nonsense\r' 'caf\xc3\xa9 \xe6\xbc\xa2\r' 'dropped\x03' 'more\r' '/quit\r'
has out "This is recorded"
has out "Thumb up, kept."
has out "there is no /nonsense"
kept 3
has all '"content": "Hello"'
has all 'café 漢'
has all '"content": "more"'
lacks all dropped
lacks all nonsense
if has_line_editing; then
    new_home
    # to the left and a letter between; text of two lines pasted; the line before the last once more, and longer
    type_in "$D/home" "--max-tokens 3" 'Helo\x1b[Dl\r' '\x1b[200~two\nlines\x1b[31m\x1b[201~\r' '\x10\x10!\r' '\x04'
    kept 3
    has all '"content": "Hello"'
    has all '"content": "two\nlines[31m"'
    has all '"content": "Hello!"'
    # the lines of the chat before, out of the store
    type_in "$D/home" "--max-tokens 3" '\x10?\r' '\x04'
    kept 4
    has all '"content": "Hello!?"'
    # gone when they are forgotten
    "$ATTUNE" forget --all --yes --home "$D/home" >/dev/null
    type_in "$D/home" "--max-tokens 3" '\x10?\r' '\x04'
    kept 1
    has all '"content": "?"'
    type_in "$D/home" "--max-tokens 3 --no-record" '\x10...\r' '\x04'
    lacks out "?..."
fi

if [ -n "${ATTUNE_TEST_MODEL:-}" ]; then
    BASE=$ATTUNE_TEST_MODEL
    new_home
    # An answer that the person ends is kept when something is said of it, and not otherwise. The line has to be taken
    # before Ctrl-C: the terminal drops what is typed and not read yet.
    type_in "$D/home" "--max-tokens 2000" 'Write a long story about the sea.\r' "await $taken" 'await the' 'now \x03' '/quit\r'
    kept 0
    type_in "$D/home" "--max-tokens 2000" 'Write a long story about the sea.\r' "await $taken" 'await the' 'now \x03' '/thumbs down\r' '/quit\r'
    kept 1
    has all '[{"kind": "thumb", "value": "down", T}]'
fi

printf '%d checks, %d failures\n' "$checks" "$failures"
[ "$failures" -eq 0 ]
