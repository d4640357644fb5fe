#!/bin/sh
# Everything that a GPU must show: the tests marked gpu, then the benchmarks, into one results file. Needs no network.
# On a machine without a GPU the small forms run, and the file says what they could not show.
#   PYTHON=python3        a Python with torch, transformers and accelerate
#   GPU_WHEELS=folder     wheels of what else is missing there (gymnasium, pytest, peft, docker, torchao ...), if any
#   OUT=runs/gpu          where results.json is written
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
mkdir -p "$out"
if [ -n "${GPU_WHEELS:-}" ]; then
    "$python" -m pip install --quiet --no-index --no-deps "$GPU_WHEELS"/*.whl
fi
# The package as it stands here, without installing it.
PYTHONPATH=$PWD/.typing:${PYTHONPATH:-}
HF_HUB_OFFLINE=1
export PYTHONPATH HF_HUB_OFFLINE
status=0
"$python" -m pytest tests/gpu -m gpu -q -p no:cacheprovider --junitxml "$out/tests.xml" || status=$?
"$python" -m polyturn.benchmarks.training_engine.gpu "$out/steps.json" || status=$?
"$python" - "$out" "$status" <<'COLLECT'
import json
import subprocess
import sys
import xml.etree.ElementTree as tree
from pathlib import Path

out, status = Path(sys.argv[1]), int(sys.argv[2])
cases = tree.parse(out / "tests.xml").getroot().iter("testcase")
tests = {"passed": 0, "failed": [], "not seen": []}
for case in cases:
    name = f"{case.get('name')}"
    if case.find("failure") is not None or case.find("error") is not None:
        tests["failed"].append(name)
    elif (skipped := case.find("skipped")) is not None:
        tests["not seen"].append(f"{name}: {skipped.get('message')}")
    else:
        tests["passed"] += 1
query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
try:
    card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
except (OSError, subprocess.CalledProcessError):
    card = "none"
steps = json.loads((out / "steps.json").read_text()) if (out / "steps.json").exists() else {}
record = {"command": "make gpu", "card": card, "exit status": status, "tests": tests, "training steps": steps}
(out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
print(f"{tests['passed']} passed, {len(tests['failed'])} failed, {len(tests['not seen'])} not seen; card: {card}")
print(f"results in {out / 'results.json'}")
COLLECT
exit "$status"
