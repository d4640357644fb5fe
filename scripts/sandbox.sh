#!/bin/sh
# Gets the Docker sandbox ready, or says in one line why the local one is used. Only fails when POLYTURN_REQUIRE_DOCKER=1.
set -eu
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin

without() {
    printf '%s\n' "sandbox: $* Using the local sandbox; tests that need Docker are skipped and counted." >&2
    [ "${POLYTURN_REQUIRE_DOCKER:-0}" != 1 ] || exit 1
    exit 0
}

"$bin/python" -c 'import docker; docker.from_env(timeout=10).ping()' 2>/dev/null || without "no Docker engine answers."
"$bin/polyturn" sandbox build || without "the sandbox image could not be built."
