#!/usr/bin/env bash
# Run a training command, and run it again each time it fails.
#
#   bash scripts/train_supervised.sh [OPTION...] [--] COMMAND [ARGUMENT...]
#   bash scripts/train_supervised.sh -- python -m paddle.distributed.launch --nproc_per_node 2 \
#       tools/train.py -c configs/HarDNet/HarDNet68.yaml -o Global.auto_resume=True
#
#   --max-restarts N     give up after so many restarts (10)
#   --backoff SECONDS    wait before the first restart (5); doubles each time, up to 300
#   --stable SECONDS     a run this long counts as progress: the wait starts over (60)
#   --max-quick N        give up after so many shorter runs in a row, probably a mistake (5)
#   --patience SECONDS   from SIGTERM until SIGKILL (60)
#
# Nothing is added to the command, which must resume by itself. It ends the supervisor with exit
# code 0, and with 2 (a user's mistake), 126 or 127 (cannot be run). SIGTERM, SIGINT and SIGHUP end
# it too: they are passed on (SIGHUP as SIGTERM) and the command gets its time to save. The exit
# code is always the command's last one. Whatever the command started is gone before it is run
# again; processes that it moved to sessions of their own are found on Linux only.
#
# The command may be `bash scripts/train_multi_gpu.sh ...`; of a job on several hosts, supervise each
# host's command, and they meet again. A command that hangs is not noticed.
set -euo pipefail

# Without scripts/_env.sh, which changes directory: the command's relative paths are the caller's.
readonly NAME=train_supervised MAX_BACKOFF=300 KILL_SECONDS=5
# Inherited by all that the command starts. The launcher's ranks are sessions of their own and
# outlive a killed launcher, so that neither its process group nor its children would find them.
mark="PPCLS_SUPERVISED_$$_$RANDOM=1"
max_restarts=10 backoff=5 stable=60 max_quick=5 patience=60
child="" is_running=false sleeper="" stop_signal="" code=0

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

# Never fails: a closed terminal must not end the supervisor before it has cleaned up.
log() { printf '%s %s: %s\n' "$(date '+%F %T')" "$NAME" "$*" >&2 2>/dev/null || true; }

stop() {
    printf '%s.sh: %s (see -h)\n' "$NAME" "$*" >&2
    exit 2
}

whole_number() { # OPTION TEXT
    [[ "$2" =~ ^(0|[1-9][0-9]{0,8})$ ]] || stop "$1: expected a whole number from 0, got '$2'"
}

describe() { # CODE
    local number=0 reason=""
    if [ "$1" -gt 128 ] && [ "$1" -le 192 ]; then
        number=$(($1 - 128)) reason=killed
    elif [ "$1" -ge 225 ] && [ "$1" -lt 255 ]; then # sys.exit(-15), as the launcher does
        number=$((256 - $1)) reason="a process of it was killed"
    fi
    if [ "$number" -gt 0 ]; then
        printf 'exit code %s (%s by SIG%s)' "$1" "$reason" "$(kill -l "$number" 2>/dev/null || echo " $number")"
    else
        printf 'exit code %s' "$1"
    fi
}

# Processes the command left behind. Zombies have no environment any more and do not count.
leftovers() { { grep -lszxF -e "$mark" /proc/[0-9]*/environ 2>/dev/null || true; } | cut -d/ -f3; }

signal_all() { # SIGNAL
    local pids
    pids="$(leftovers)"
    # shellcheck disable=SC2086  # one argument per process
    [ -z "$pids" ] || kill -s "$1" $pids 2>/dev/null || true
    [ -z "$child" ] || kill -s "$1" -- "-$child" 2>/dev/null || true
}

# Wait until a condition is false, for at most so many seconds.
wait_while() { # SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    shift
    while "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.2
    done
}

has_leftovers() { [ -n "$(leftovers)" ]; }
is_alive() { kill -0 "$child" 2>/dev/null; }

# Without bash's own message about the killed command.
kill_all() {
    signal_all KILL
    wait_while "$KILL_SECONDS" has_leftovers 2>/dev/null || log "not killed: processes" "$(leftovers | xargs)"
}

# End what the command left behind: SIGTERM, its time to save, SIGKILL.
sweep() {
    if has_leftovers; then
        log "the command left processes behind, ending them:" "$(leftovers | xargs)"
        signal_all TERM
        wait_while "$patience" has_leftovers || log "still there after $patience s, killing them"
    fi
    kill_all
    child="" # from here on its number may be another process's
}

# Pass a signal on, give the command its time, then kill it.
on_signal() { # NAME
    local name="$1" earlier="$stop_signal"
    stop_signal="$name"
    [ -z "$sleeper" ] || kill "$sleeper" 2>/dev/null || true
    [ "$is_running" = true ] || return 0
    # The launcher does not catch SIGHUP: it would die and leave its ranks running.
    [ "$name" != HUP ] || name=TERM
    log "SIG$stop_signal: passing SIG$name on, waiting up to $patience s"
    kill -s "$name" "$child" 2>/dev/null || true
    [ -z "$earlier" ] || return 0
    wait_while "$patience" is_alive || { log "still running, killing it"; kill_all; }
}

start() { # COMMAND...
    # Job control gives the command a process group of its own, and leaves its SIGINT as it is.
    set -m
    (export "${mark?}" && exec "$@") </dev/null &
    child=$! is_running=true
    set +m
    [ -z "$stop_signal" ] || on_signal "$stop_signal"
}

# Wait for the command and set `code`.
finish() {
    code=0
    wait "$child" 2>/dev/null || code=$?
    if [ -n "$stop_signal" ]; then # which ended `wait` early; on_signal has seen the command end
        code=0
        wait "$child" 2>/dev/null || code=$?
    fi
    is_running=false
}

# Sleep, unless a signal comes.
pause() { # SECONDS
    sleep "$1" &
    sleeper=$!
    [ -n "$stop_signal" ] || wait "$sleeper" 2>/dev/null || true
    kill "$sleeper" 2>/dev/null || true
    sleeper=""
}

end() { # REASON
    log "$1"
    exit "$code"
}

supervise() { # COMMAND...
    local restarts=0 quick=0 delay="$backoff" began seconds
    while true; do
        began=$SECONDS
        start "$@"
        log "run $((restarts + 1)): process $child"
        finish
        seconds=$((SECONDS - began))
        log "run $((restarts + 1)): $(describe "$code") after $seconds s"
        sweep
        [ "$code" -ne 0 ] || end "done"
        [ -z "$stop_signal" ] || end "no restart: stopped by SIG$stop_signal"
        case "$code" in
            2) end "no restart: exit code 2 is a mistake to correct" ;;
            126 | 127) end "no restart: the command cannot be run" ;;
        esac
        if [ "$seconds" -ge "$stable" ]; then
            quick=0 delay="$backoff"
        else
            quick=$((quick + 1))
        fi
        [ "$quick" -lt "$max_quick" ] || end "giving up: $quick runs in a row shorter than $stable s"
        [ "$restarts" -lt "$max_restarts" ] || end "giving up: $restarts restarts"
        restarts=$((restarts + 1))
        log "restart $restarts of $max_restarts in $delay s"
        pause "$delay"
        [ -z "$stop_signal" ] || end "no restart: stopped by SIG$stop_signal"
        delay=$((delay * 2 > MAX_BACKOFF ? MAX_BACKOFF : delay * 2))
    done
}

while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) usage; exit 0 ;;
        --max-restarts | --backoff | --stable | --max-quick | --patience)
            [ $# -ge 2 ] || stop "$1: expected a value"
            whole_number "$1" "$2"
            variable="${1#--}"
            printf -v "${variable//-/_}" '%s' "$2"
            shift 2
            ;;
        --) shift; break ;;
        -*) stop "unknown option $1" ;;
        *) break ;;
    esac
done
[ $# -gt 0 ] || stop "expected a command"
[ -n "$(type -P -- "$1")" ] || stop "no such program: $1"
[ "$max_quick" -gt 0 ] || max_quick=$((max_restarts + 2)) # 0: no such limit
shopt -s nocasematch
[[ " $* " == *" Global.auto_resume=True "* ]] ||
    log "warning: no Global.auto_resume=True in the command; unless the recipe sets it, a restart begins anew"
shopt -u nocasematch

trap 'on_signal TERM' TERM
trap 'on_signal INT' INT
trap 'on_signal HUP' HUP
trap : PIPE # writing to a closed pipe is then an error, which `log` survives
trap kill_all EXIT
supervise "$@"
