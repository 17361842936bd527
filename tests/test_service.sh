#!/bin/sh
# attune service, over a systemctl of this test's own that notes what it was asked.
# usage: test_service.sh PATH_OF_ATTUNE [ROOT_OF_THE_REPOSITORY]
set -u

ATTUNE=${1:?usage: test_service.sh PATH_OF_ATTUNE [ROOT]}
ROOT=${2:-$(dirname "$0")/..}
case $ATTUNE in /*) ;; *) ATTUNE=$PWD/$ATTUNE ;; esac
case $ROOT in /*) ;; *) ROOT=$PWD/$ROOT ;; esac
ATTUNE=$(readlink -f "$ATTUNE")
D=$(readlink -f "$(mktemp -d)") || exit 1
trap 'rm -rf "$D"' EXIT
trap 'exit 1' HUP INT TERM
unset ATTUNE_HOME XDG_DATA_HOME XDG_CONFIG_HOME
export HOME="$D/user"
H="$D/a home 100%"
U=$HOME/.config/systemd/user
SERVICE=$U/attune-nightly.service
TIMER=$U/attune-nightly.timer
mkdir "$HOME" "$D/bin"
checks=0 failures=0

fail() {
    failures=$((failures + 1))
    printf 'FAILED: %s\n' "$1"
    sed 's/^/  out: /' "$D/out" | head -8
    sed 's/^/  err: /' "$D/err" | head -5
}
# expect CODE ARGUMENT...
expect() {
    code=$1
    shift
    checks=$((checks + 1))
    what="attune $*"
    : >"$D/calls"
    PATH=$D/bin:$PATH "$ATTUNE" "$@" </dev/null >"$D/out" 2>"$D/err"
    got=$?
    [ "$got" -eq "$code" ] || fail "$what: exit code $got, not $code"
}
holds() { # FILE TEXT
    checks=$((checks + 1))
    grep -qF -e "$2" "$1" || fail "$what: no \"$2\" in $(basename "$1")"
}
is() { # WHAT A B
    checks=$((checks + 1))
    [ "$2" = "$3" ] || fail "$what: $1 is \"$2\", not \"$3\""
}

# A systemctl: what it is told goes to $D/calls; $D/broken names a word that it refuses, $D/gone: no manager.
cat >"$D/bin/systemctl" <<END
#!/bin/sh
printf '%s\n' "\$*" >>"$D/calls"
[ "\$1" = --user ] || exit 64
if [ -e "$D/gone" ]; then echo "Failed to connect to bus: No medium found" >&2; exit 1; fi
if [ -e "$D/broken" ] && [ "\$2" = "\$(cat "$D/broken")" ]; then echo "it does not like that" >&2; exit 5; fi
case "\$2 \$3" in
"show attune-nightly.timer")
    printf 'ActiveState=active\nUnitFileState=enabled\nNextElapseUSecRealtime=Mon 2030-01-07 22:20:00 UTC\n'
    printf 'LastTriggerUSec=Mon 2030-01-07 22:00:00 UTC\n' ;;
"show attune-nightly.service")
    printf 'ActiveState=active\nResult=success\nExecMainStatus=3\nStatusText=train, 40 %%\n' ;;
esac
exit 0
END
chmod +x "$D/bin/systemctl"

expect 1 service install --home "$H"
holds "$D/err" "no attune home"
expect 0 init --base "$ROOT/tests/golden/tiny_llama.gguf" --home "$H"

# ---- printing: what the packaged units say, with the places put in; nothing is installed, nobody is asked ----
expect 0 service install --print --home "$H"
is "calls of systemctl" "$(cat "$D/calls")" ""
checks=$((checks + 1))
[ ! -e "$U" ] || fail "--print wrote units"
q=$(printf '%s' "$H" | sed 's/%/%%/g')
for unit in attune-nightly.service attune-nightly.timer; do
    checks=$((checks + 1))
    awk -v unit="$unit" '/^# \/.*\/attune-nightly\.(service|timer)$/ { on = index($0, "/" unit) > 0; next } on' "$D/out" |
        sed "s#$q#%h/.local/share/attune#g; s#$ATTUNE#/usr/bin/attune#g" | sed -e '$ { /^$/d; }' >"$D/unit"
    cmp -s "$D/unit" "$ROOT/packaging/systemd/$unit" || fail "packaging/systemd/$unit is not what --print says"
done
expect 2 service remove --print --home "$H"
expect 2 service start --home "$H"
expect 2 service

# ---- installing, twice ----
expect 0 service install --home "$H"
holds "$D/out" "is installed"
is "what was asked" "$(tr '\n' ';' <"$D/calls")" \
    "--user show --property=Version;--user daemon-reload;--user enable --now attune-nightly.timer;"
holds "$SERVICE" "ExecStart=\"$ATTUNE\" nightly --home \"$q\""
holds "$SERVICE" "ReadWritePaths=\"$q\""
holds "$SERVICE" "SuccessExitStatus=3"
holds "$TIMER" "OnCalendar="
is "mode" "$(stat -c %a "$SERVICE")" 644
before=$(stat -c %i "$SERVICE" "$TIMER")
expect 0 service install --home "$H" --json
holds "$D/out" '"changed": false'
is "the files" "$(stat -c %i "$SERVICE" "$TIMER")" "$before"
is "leftovers" "$(ls -A "$U" | tr '\n' ' ')" "attune-nightly.service attune-nightly.timer "

# ---- telling ----
expect 0 service status --home "$H"
holds "$D/out" "Mon 2030-01-07 22:20:00 UTC"
holds "$D/out" "it runs: train, 40 %"
expect 0 service status --home "$H" --json
holds "$D/out" '"enabled": true'
holds "$D/out" '"last_exit": "3"'

# ---- what is somebody else's stays: a unit without the first line, a link, another home's ----
expect 0 init --base "$ROOT/tests/golden/tiny_llama.gguf" --home "$D/other"
expect 1 service install --home "$D/other"
holds "$D/err" "another home"
cp "$SERVICE" "$D/kept"
echo "[Unit]" >"$SERVICE"
expect 1 service install --home "$H"
holds "$D/err" "has not written"
expect 1 service remove --home "$H"
is "the unit" "$(cat "$SERVICE")" "[Unit]"
rm "$SERVICE"
ln -s /dev/null "$SERVICE"
expect 1 service install --home "$H"
holds "$D/err" "has not written"
rm "$SERVICE"
cp "$D/kept" "$SERVICE"

# ---- what systemctl refuses is told ----
echo enable >"$D/broken"
expect 1 service install --home "$H"
holds "$D/err" "enable failed: it does not like that"
rm "$D/broken"

# ---- removing, twice ----
expect 0 service remove --home "$H"
is "what was asked" "$(tr '\n' ';' <"$D/calls")" \
    "--user show --property=Version;--user disable --now attune-nightly.timer;--user stop attune-nightly.service;--user daemon-reload;"
is "what is left" "$(ls -A "$U")" ""
expect 0 service remove --home "$H"
holds "$D/out" "No nightly timer is installed"
expect 0 service status --home "$H"
holds "$D/out" "No nightly timer is installed"

# ---- without a manager: the line for cron, and nothing is written ----
: >"$D/gone"
expect 1 service install --home "$H"
holds "$D/err" "no systemd user manager"
line="*/20 * * * * '$ATTUNE' nightly --home '$D/a home 100\\%' >/dev/null"
holds "$D/out" "$line"
is "what is left" "$(ls -A "$U")" ""
expect 1 service remove --home "$H"
holds "$D/out" "$line"
holds "$D/out" "take this line out"
rm "$D/bin/systemctl" # nor is there a systemctl
what="attune service install, without systemctl"
PATH=$D/bin "$ATTUNE" service install --home "$H" >"$D/out" 2>"$D/err"
is "exit code" $? 1
holds "$D/out" "$line"

# ---- a path that a unit cannot hold ----
what="attune service install, a home with a quote"
"$ATTUNE" service install --print --home "$D/it's" >"$D/out" 2>"$D/err"
is "exit code" $? 1
holds "$D/err" "cannot be put into a unit"

# ---- where systemd's own tools are: they find nothing wrong ----
if command -v systemd-analyze >/dev/null; then
    what="systemd-analyze verify"
    mkdir "$D/units" "$D/run"
    sed "s#/usr/bin/attune#$ATTUNE#" "$ROOT/packaging/systemd/attune-nightly.service" >"$D/units/attune-nightly.service"
    cp "$ROOT/packaging/systemd/attune-nightly.timer" "$D/units"
    XDG_RUNTIME_DIR=$D/run systemd-analyze verify --user "$D/units/attune-nightly.service" \
        "$D/units/attune-nightly.timer" >"$D/out" 2>"$D/err"
    is "exit code" $? 0
    is "what it says" "$(grep -F attune-nightly "$D/err")" ""
fi

# ---- what systemd is told by the service itself: ready first, the watchdog fed, stopping last ----
if ldd "$ATTUNE" | grep -q libsystemd && command -v python3 >/dev/null; then
    what="attune nightly, as a service"
    expect 0 import "$ROOT/examples/personas/sailor.jsonl" --consent --home "$H"
    sed -i 's/^max_tokens = .*/max_tokens = 160/; s/^without_sensors = .*/without_sensors = run/; s/^rank = .*/rank = 2/' \
        "$H/attune.conf"
    python3 - "$ATTUNE" "$H" "$D/notify" >"$D/out" 2>"$D/err" <<'END'
import os, socket, subprocess, sys, threading
attune, home, path = sys.argv[1:]
told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
told.bind(path)
messages = []
def listen():  # a queue of such a socket holds ten: as systemd does, it is read all the time
    while not messages or messages[-1] != "STOPPING=1":
        messages.append(told.recv(4096).decode())
listener = threading.Thread(target=listen, daemon=True)
listener.start()
environment = dict(os.environ, NOTIFY_SOCKET=path, WATCHDOG_USEC="40000")
code = subprocess.run([attune, "nightly", "--now", "--threads", "1", "--home", home], env=environment,
                      stdout=subprocess.DEVNULL, timeout=120).returncode
listener.join(10)
print("code", code)
print("first", messages[0] if messages else "")
print("last", messages[-1] if messages else "")
print("watchdog", "WATCHDOG=1" in messages)
print("status", any(m.startswith("STATUS=train") for m in messages))
END
    is "what it told" "$(tr '\n' ';' <"$D/out")" "code 0;first READY=1;last STOPPING=1;watchdog True;status True;"
fi

printf '%s checks, %s failures\n' "$checks" "$failures"
[ "$failures" -eq 0 ]
