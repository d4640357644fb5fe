#!/bin/sh
# Makes the virtual environment the Makefile runs everything in. Safe to repeat: does nothing while what it was made
# from (this folder, pyproject.toml, constraints.txt) is unchanged, and starts again after an interruption.
#   VENV=.venv      where to make it
#   PYTHON=python3  which Python to use (3.11 or newer); without it the first suitable one on the path
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
stamp=$venv/.ready

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup: error: $*" >&2; exit 1; }

state=$({ pwd; cat pyproject.toml constraints.txt scripts/setup.sh; } | cksum)
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$state" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    say "$venv is up to date"
    exit 0
fi

suitable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if suitable "$candidate"; then python=$candidate && break; fi
done
[ -n "$python" ] || fail "no Python >= 3.11 found as ${PYTHON:-python3, python3.13, python3.12 or python3.11};" \
    "install one (Debian/Ubuntu: apt-get install python3 python3-venv; macOS: brew install python@3.12) or set PYTHON=/path/to/python"

say "making $venv with $("$python" --version) ($(command -v "$python"))"
rm -f "$stamp"
if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    "$python" -m venv --clear "$venv"
elif "$python" -m virtualenv --version >/dev/null 2>&1; then
    "$python" -m virtualenv --quiet --clear "$venv"
else
    fail "$python cannot make virtual environments; on Debian/Ubuntu: apt-get install python3-venv, then repeat"
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

# On Linux PyPI's torch brings gigabytes of CUDA libraries. A machine without an NVIDIA GPU has no use for them, and
# PyTorch's own index has the small build; where it cannot be reached, PyPI's works as well.
torch_index=https://download.pytorch.org/whl/cpu
set --
if [ "$(uname -sm)" = "Linux x86_64" ] && ! nvidia-smi -L >/dev/null 2>&1; then
    if "$venv/bin/python" - "$torch_index/" <<'PROBE'
import os, sys, threading, urllib.request

def give_up() -> None:  # a name server that never answers is not covered by urllib's time-out
    os._exit(1)

threading.Timer(8, give_up).start()
try:
    urllib.request.urlopen(urllib.request.Request(sys.argv[1], method="HEAD"), timeout=5)
except Exception:
    os._exit(1)
os._exit(0)
PROBE
    then
        say "no NVIDIA GPU: taking the CPU build of torch from $torch_index"
        set -- --extra-index-url "$torch_index"
    else
        say "no NVIDIA GPU, but $torch_index does not answer: taking torch from pip's usual places"
    fi
fi

say "installing polyturn and its development tools (versions: constraints.txt); the first time takes minutes"
pip install --quiet --progress-bar off --constraint constraints.txt "$@" --editable '.[dev]'
printf '%s' "$state" > "$stamp"
say "$venv is ready"
