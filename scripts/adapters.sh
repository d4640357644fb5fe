#!/bin/sh
# Tests the adapters of packages that cannot be installed beside polyturn's own versions, each in an environment of its
# own in .cache/adapters. Such an environment holds the package and what it insists on; everything else comes from
# VENV, so that it takes a minute, not gigabytes. Safe to repeat.
#   VENV=.venv   ONLY="gem trl"   arguments: passed to pytest
set -eu
cd "$(dirname "$0")/.."
venv=$(cd "${VENV:-.venv}" && pwd)
below=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

prepare() { # NAME REQUIREMENT
    place=.cache/adapters/$1
    state="$2 $below $("$venv/bin/python" -m pip list --format=freeze 2>/dev/null | cksum)"
    [ "$(cat "$place/.ready" 2>/dev/null || true)" = "$state" ] && return
    printf '%s\n' "adapters: installing $2 into $place"
    rm -rf "$place"
    "$venv/bin/python" -m venv "$place"
    # Read after the environment's own packages; addsitedir, as polyturn itself may be installed through a .pth file.
    printf 'import site; site.addsitedir(%s)\n' "'$below'" \
        > "$("$place/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
    "$place/bin/python" -m pip install --quiet --disable-pip-version-check "$2"
    printf '%s' "$state" > "$place/.ready"
}

failed=
while read -r name requirement; do
    case " ${ONLY:-$name} " in *" $name "*) ;; *) continue ;; esac
    prepare "$name" "$requirement"
    printf '%s\n' "adapters: $requirement"
    ".cache/adapters/$name/bin/python" -m pytest -m "peer(name='$name')" \
        tests/envs/peers tests/agents/peers tests/envs/tools/test_connect.py "$@" </dev/null || failed="$failed $name"
done <<PEERS
gem gem-llm==0.1.0
openenv openenv==0.10.0
trl trl==1.16.0
verifiers verifiers==0.4.0
PEERS
[ -z "$failed" ] || { printf '%s\n' "adapters: failed:$failed" >&2; exit 1; }
