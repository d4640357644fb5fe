#!/bin/sh
# Installs what the benchmarks compare with into an environment of its own (.cache/peers): TRL's trainers.
# Safe to repeat. Afterwards `polyturn bench training_engine` finds it there; POLYTURN_PEERS names another Python.
set -eu
cd "$(dirname "$0")/.."
place=.cache/peers
[ -x "$place/bin/python" ] || "${PYTHON:-python3}" -m venv "$place"
# torch first and alone, in the version that the constraints name, so that both sides compute with the same one.
torch=$(grep '^torch==' constraints.txt)
transformers=$(grep '^transformers==' constraints.txt)
"$place/bin/pip" install --quiet "$torch"
"$place/bin/pip" install --quiet "trl==1.16.0" "$transformers" peft datasets
"$place/bin/python" -c 'import trl; print("peers: trl", trl.__version__)'
