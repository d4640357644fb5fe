#!/bin/sh
# Prepares this machine for `make browser`: a Chromium and what drives it. Safe to repeat.
#   VENV=.venv              where polyturn is installed
#   CHROMIUM=/usr/bin/...   which browser; without it the first of chromium, chromium-browser, google-chrome on the path
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
fail() { printf '%s\n' "browser: error: $*" >&2; exit 1; }

browser=${CHROMIUM:-}
for name in chromium chromium-browser google-chrome; do
    [ -n "$browser" ] || browser=$(command -v "$name" || true)
done
if [ -z "$browser" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "browser: installing Debian's Chromium"
    apt-get install -q -y --no-install-recommends chromium fonts-dejavu-core >/dev/null ||
        fail "apt-get could not install chromium; run apt-get update, then repeat"
    browser=$(command -v chromium)
fi
[ -n "$browser" ] || fail "no Chromium found; install one (Debian: apt-get install chromium) or set CHROMIUM=/path/to/it"
"$venv/bin/python" -c 'import axe_playwright_python, playwright' 2>/dev/null ||
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[browser]'
echo "browser: $browser"
