#!/usr/bin/env bash
# Lint, types and tests, in .venv (made when missing).
#
#   bash scripts/test.sh [--paddle262] [PYTEST_ARGUMENT...]
#   bash scripts/test.sh -k plan       some tests
#   bash scripts/test.sh -m slow       the slow ones
#
# --paddle262, or CI=true in the environment, first runs tests/smoke on Paddle 2.6.2 in a second
# environment, .venv-paddle262.
set -euo pipefail
# shellcheck source=scripts/_env.sh
source "$(dirname "${BASH_SOURCE[0]}")/_env.sh"

readonly OLD_PADDLE=2.6.2
readonly OLD_VENV=.venv-paddle262

step() { # NAME COMMAND...
    local name="$1"
    shift
    say "== $name"
    "$@" || fail "$name failed"
}

# The files named in [tool.mypy] of pyproject.toml, without those that do not exist.
typed_files() {
    local file
    sed -n '/^\[tool\.mypy\]/,/^]/s/^ *"\(.*\.py\)",*$/\1/p' pyproject.toml | while read -r file; do
        if [ -f "$file" ]; then say "$file"; else say "mypy: $file is not there" >&2; fi
    done
}

check_types() {
    local files
    files="$(typed_files)"
    # shellcheck disable=SC2086  # one argument per file; their names have no spaces
    [ -z "$files" ] || .venv/bin/python -m mypy $files
}

lint() {
    step "ruff check" .venv/bin/python -m ruff check .
    step "ruff format" .venv/bin/python -m ruff format --check .
    step "codespell" .venv/bin/python -m codespell_lib
    step "mypy" check_types
}

# Paddle 2.6.2 was built for NumPy 1, and its wheel does not ask for the setuptools it imports.
ensure_old_paddle() { # PYTHON
    local current stamp="$OLD_VENV/installed"
    ensure_venv "$OLD_VENV" "$1"
    current="$(fingerprint "$OLD_VENV")"
    [ "$(cat "$stamp" 2>/dev/null)" != "$current" ] || return 0
    say "installing Paddle $OLD_PADDLE into $OLD_VENV"
    run_pip "$OLD_VENV" --editable ".[cpu,digits]" "paddlepaddle==$OLD_PADDLE" "numpy<2" pytest hypothesis
    check_imports "$OLD_VENV"
    say "$current" >"$stamp"
}

smoke_test_old_paddle() {
    local python
    if [ ! -d tests/smoke ]; then
        say "== Paddle $OLD_PADDLE: skipped, there is no tests/smoke"
    elif python="$(find_python 3.10 3.11 ${PYTHON:+"$PYTHON"} python3.11 python3.10 python3)"; then
        ensure_old_paddle "$python"
        step "Paddle $OLD_PADDLE smoke test" "$OLD_VENV/bin/python" -m pytest -q tests/smoke
    else
        say "== Paddle $OLD_PADDLE: skipped, it needs Python 3.10 or 3.11 with venv"
    fi
}

old_paddle="${CI:-false}"
arguments=()
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage; exit 0 ;;
        --paddle262) old_paddle=true ;;
        *) arguments+=("$argument") ;;
    esac
done

ensure_project cpu zoo digits deploy serve shards analysis test
lint
[ "$old_paddle" != true ] || smoke_test_old_paddle
say "== pytest"
# One thread for each of the workers: sums then do not depend on the machine, and cores are shared.
# A worker that crashes ends the run: xdist can wait for ever for the tests it had.
PPCLS_NUM_THREADS=1 OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --dist loadfile \
    --max-worker-restart 0 \
    ${arguments[@]+"${arguments[@]}"}
