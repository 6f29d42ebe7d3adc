#!/usr/bin/env bash
# Make the virtual environment and install the library and its tools in it. Called by `make`,
# which sets VENV, PYTHON, CONSTRAINTS and EXTRAS; each may be empty but VENV.
set -uo pipefail

fail() {
    printf '\n%s\n' "$@" >&2
    exit 1
}

suits() { # is this a Python that runs, and new enough?
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

command -v git >/dev/null || fail "git is missing." \
    "Debian/Ubuntu: sudo apt-get install git    macOS: xcode-select --install"

rm -f "$VENV/.installed"
if ! suits "$VENV/bin/python"; then
    if [ -n "${PYTHON:-}" ]; then
        suits "$PYTHON" || fail "PYTHON=$PYTHON does not run or is older than Python 3.11."
    else
        for name in python3 python3.13 python3.12 python3.11; do
            if suits "$name"; then PYTHON=$name; break; fi
        done
        [ -n "${PYTHON:-}" ] || fail "No Python 3.11 or newer was found." \
            "Debian/Ubuntu: sudo apt-get install python3 python3-venv    macOS: brew install python" \
            "or name one: make PYTHON=/path/to/python3.12 ..."
    fi
    echo "Making $VENV with $("$PYTHON" --version) ($PYTHON)"
    "$PYTHON" -m venv --clear "$VENV" || fail "This Python cannot make a virtual environment." \
        "Debian/Ubuntu: sudo apt-get install python3-venv" \
        "or name another: make PYTHON=/path/to/python3.12 ..."
fi

arguments=(--editable ".[${EXTRAS:-dev}]")
[ -n "${CONSTRAINTS:-}" ] && arguments=(--constraint "$CONSTRAINTS" "${arguments[@]}")
echo "Installing into $VENV (about 6 GB with PyTorch's CUDA build; a few minutes, once)"
"$VENV/bin/python" -m pip install --quiet --quiet --no-compile --disable-pip-version-check \
    "${arguments[@]}" ||
    fail "The install failed; pip's message is above. What helps most often:" \
        "  no network or a proxy:  set HTTPS_PROXY, then run the command again" \
        "  disk full:              7 GB must be free here" \
        "  a pinned version is not to be had for this Python: name another with PYTHON=python3.12," \
        "                          or take the newest versions with: make CONSTRAINTS= ..." \
        "  a broken environment:   rm -r $VENV, then run the command again"
touch "$VENV/.installed"
