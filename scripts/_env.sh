# Shared by the scripts in this folder; source it, do not run it.
# shellcheck shell=bash
#
# Sets `root` (the repository) and moves there, so that every path in a script is relative to it.

script="$(cd "$(dirname "$0")" && pwd -P)/$(basename "$0")"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd "$root" || exit 2

readonly OLDEST_PYTHON=3.10 NEWEST_PYTHON=3.13
readonly FREE_MB_NEEDED=3072

say() { printf '%s\n' "$*"; }

# Print the comment at the top of the script.
usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "$script"; }

# One line, then the end. Exit code 2: something is missing; 1: a job failed.
stop() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# True when PYTHON is a Python between OLDEST and NEWEST (default: all that are supported).
python_in_range() { # PYTHON [OLDEST NEWEST]
    "$1" - "${2:-$OLDEST_PYTHON}" "${3:-$NEWEST_PYTHON}" >/dev/null 2>&1 <<'PY'
import sys
oldest, newest = (tuple(map(int, text.split("."))) for text in sys.argv[1:])
sys.exit(not oldest <= sys.version_info[:2] <= newest)
PY
}

can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# Print the first Python of CANDIDATES in range that can make a virtual environment. 3.11 comes
# first: it is the newest that can install the extra `zoo`. Status 1: none in range, 3: no venv.
find_python() { # OLDEST NEWEST CANDIDATE...
    local oldest="$1" newest="$2" without_venv="" candidate
    shift 2
    for candidate in "$@"; do
        python_in_range "$candidate" "$oldest" "$newest" || continue
        if can_make_venv "$candidate"; then
            say "$candidate"
            return 0
        fi
        without_venv="${without_venv:-$candidate}"
    done
    [ -z "$without_venv" ] || { say "$without_venv"; return 3; }
    return 1
}

# Print the Python to use for .venv, or stop.
choose_python() {
    local found status=0
    if [ -n "${PYTHON:-}" ]; then
        command -v "$PYTHON" >/dev/null 2>&1 || stop "PYTHON=$PYTHON: no such program"
        found="$(find_python $OLDEST_PYTHON $NEWEST_PYTHON "$PYTHON")" || status=$?
        [ "$status" -ne 1 ] ||
            stop "PYTHON=$PYTHON: expected Python $OLDEST_PYTHON to $NEWEST_PYTHON, got $("$PYTHON" -V 2>&1)"
    else
        found="$(find_python $OLDEST_PYTHON $NEWEST_PYTHON \
            python3.11 python3.10 python3.13 python3.12 python3 python)" || status=$?
        [ "$status" -ne 1 ] ||
            stop "no Python $OLDEST_PYTHON to $NEWEST_PYTHON found on PATH; install one, or set PYTHON=/path/to/python3.11"
    fi
    [ "$status" -ne 3 ] ||
        stop "$found cannot make virtual environments (no ensurepip); install its venv package (Debian, Ubuntu: apt-get install python3-venv)"
    say "$found"
}

check_disk() {
    local free_mb
    free_mb="$(df -Pk "$root" | awk 'NR == 2 { print int($4 / 1024) }')"
    [ "${free_mb:-0}" -ge "$FREE_MB_NEEDED" ] ||
        stop "not enough disk: installing needs $FREE_MB_NEEDED MB free in $root, found ${free_mb:-0} MB"
}

venv_works() { "$1/bin/python" -c 'import pip' >/dev/null 2>&1; }

# Make the virtual environment VENV with PYTHON unless a working one is there.
ensure_venv() { # VENV PYTHON
    local venv="$1" python="$2"
    venv_works "$venv" && return 0
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
        stop "$root/$venv is not a virtual environment; move it away and run again"
    fi
    check_disk
    say "making $venv with $("$python" -V 2>&1)"
    "$python" -m venv --clear "$venv" >"$venv.log" 2>&1 ||
        fail "python -m venv failed: $(tail -n 1 "$venv.log") (log: $root/$venv.log)"
    rm -f "$venv.log"
}

# What an installation depends on; a stamp file with this text says it is up to date.
fingerprint() { # VENV
    say "$root" "$(cat pyproject.toml setup.py ppcls/ops/*.c | cksum)" "$("$1/bin/python" -V 2>&1)"
}

# pip with its output in VENV/install.log; shows the large downloads, so that a wait explains itself.
run_pip() { # VENV ARGUMENT...
    local venv="$1" log="$1/install.log"
    shift
    if ! "$venv/bin/python" -m pip install --disable-pip-version-check --no-input "$@" 2>&1 |
        tee "$log" | { grep --line-buffered -E '^ *Downloading .*\([0-9]{2,}\.[0-9]+ MB\)' || true; }; then
        { grep -E '^ *(ERROR|error):' "$log" || tail -n 5 "$log"; } | head -n 5 >&2
        fail "pip failed as shown above; whole log: $root/$log"
    fi
}

# opencv-python needs the system's libGL; the same version built without windows does not. It is
# laid over the first, which stays registered, so that pip sees every requirement met.
use_headless_opencv() { # VENV
    local venv="$1" version
    version="$("$venv/bin/python" -m pip show opencv-python 2>/dev/null | sed -n 's/^Version: //p')"
    [ -n "$version" ] || return 1
    say "no libGL on this machine: using opencv-python-headless $version"
    run_pip "$venv" --no-deps --force-reinstall "opencv-python-headless==$version"
}

# zlib first: Paddle 2.6 carries a zlib of its own, with which Python's crashes when loaded later.
imports_work() { "$1/bin/python" -c 'import zlib, cv2, paddle' >"$1/imports.log" 2>&1; }

check_imports() { # VENV
    local venv="$1" error
    imports_work "$venv" && return 0
    if grep -qE 'lib(GL|gthread|glib)' "$venv/imports.log" && use_headless_opencv "$venv"; then
        imports_work "$venv" && return 0
    fi
    error="$(grep -E 'Error' "$venv/imports.log" | tail -n 1)" || true
    case "$error" in
        *libgomp*) stop "Paddle needs libgomp (Debian, Ubuntu: apt-get install libgomp1): $error" ;;
        *) fail "the installed packages cannot be imported: ${error:-crash} (log: $root/$venv/imports.log)" ;;
    esac
}

# Install the project, editable, with the EXTRAS that are not up to date in VENV.
ensure_extras() { # VENV EXTRA...
    local venv="$1" extra current missing=""
    shift
    current="$(fingerprint "$venv")"
    for extra in "$@"; do
        [ "$(cat "$venv/installed-$extra" 2>/dev/null)" = "$current" ] || missing="$missing,$extra"
    done
    [ -n "$missing" ] || return 0
    missing="${missing#,}"
    say "installing .[$missing] into $venv, some minutes the first time"
    run_pip "$venv" --editable ".[$missing]"
    check_imports "$venv"
    for extra in ${missing//,/ }; do
        say "$current" >"$venv/installed-$extra"
    done
}

# Make .venv if it is missing and install the EXTRAS into it.
ensure_project() { # EXTRA...
    local python=""
    if ! venv_works .venv; then
        python="$(choose_python)"
    elif ! python_in_range .venv/bin/python; then
        stop "$root/.venv has $(.venv/bin/python -V 2>&1), expected Python $OLDEST_PYTHON to $NEWEST_PYTHON; move it away and run again"
    fi
    ensure_venv .venv "$python"
    ensure_extras .venv "$@"
}

# The Python that launches training: that of the active environment, or else of .venv.
training_python() {
    local python="${VIRTUAL_ENV:-${CONDA_PREFIX:-$root/.venv}}/bin/python"
    [ -x "$python" ] || stop "no $python; activate an environment with the extra gpu"
    say "$python"
}

check_launch() { # GPUS CONFIG
    local python
    python="$(training_python)"
    [[ "$1" =~ ^[0-9]+(,[0-9]+)*$ ]] || stop "expected GPU numbers such as 0,1,2,3, got '$1'"
    [ -f "$2" ] || stop "no configuration $2 (a path is relative to $root)"
    "$python" -c 'import zlib, sys, paddle; sys.exit(not paddle.is_compiled_with_cuda())' 2>/dev/null ||
        stop "expected a Paddle with CUDA in $python; install the extra gpu"
}
