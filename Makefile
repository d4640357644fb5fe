# Every target makes the virtual environment it needs; run any of them straight after cloning.
#   VENV=.venv  PYTHON=python3.12  PYTEST_WORKERS=2  ARGS="extra arguments for pytest or polyturn quickstart"
VENV ?= .venv
PYTEST_WORKERS ?= 2
ARGS ?=
FILES ?=
BIN := $(VENV)/bin

export VENV
# One thread a process: two workers on two cores, each with a thread a core, would fight over them.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help setup sandbox quickstart test gpu vllm adapters programs browser ray docs docs-serve lint types format mutate dist clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make .venv with everything in it
	@sh scripts/setup.sh

sandbox: setup ## build the sandbox image if a Docker engine answers
	@sh scripts/sandbox.sh

quickstart: sandbox ## the main job: a policy learns tool-integrated math from preferences
	$(BIN)/polyturn quickstart $(ARGS)

test: sandbox ## run the tests
	$(TEST_ENV) $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(ARGS)

gpu: setup ## tests and benchmarks for a GPU, into runs/gpu/results.json; on a CPU their small forms
	PYTHON=$(BIN)/python sh scripts/gpu.sh

browser: setup ## test the viewer's page in a headless Chromium
	@sh scripts/browser.sh
	$(TEST_ENV) $(BIN)/python -m pytest -m browser tests/browser $(ARGS)

ray: setup ## test collecting on a Ray cluster of two nodes, with kills; Ray is installed here for it
	@$(BIN)/python -c 'import ray' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e '.[ray]'
	$(TEST_ENV) $(BIN)/python -m pytest -m ray tests/agents/collecting/test_cluster.py $(ARGS)

docs: setup ## build the documentation's site, strictly
	@$(BIN)/python -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python scripts/docs.py build

docs-serve: setup ## the same, served to this machine
	@$(BIN)/python -c 'import mkdocs, mkdocstrings' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python scripts/docs.py serve

vllm: ## test the engine of servers against a real vLLM on this CPU, installed into .venv-vllm for it
	@sh scripts/vllm.sh
	$(TEST_ENV) $(or $(VLLM_VENV),.venv-vllm)/bin/python -m pytest -m vllm tests/agents/transformer/test_vllm.py $(ARGS)

adapters: setup ## test the adapters of other packages' environments, installed here for it
	@$(BIN)/python -c 'import pettingzoo, pygame, reasoning_gym, textarena' 2>/dev/null \
		|| $(BIN)/python -m pip install -q -c constraints.txt -e '.[adapters]'
	$(TEST_ENV) $(BIN)/python -m pytest -m adapters tests/envs/tools/test_adapters.py tests/envs/tools/test_connect.py $(ARGS)
	@$(TEST_ENV) sh scripts/adapters.sh $(ARGS)

programs: setup ## test clients and agent frameworks of other packages, installed here for it
	@$(BIN)/python -c 'import anthropic, pydantic_ai, minisweagent' 2>/dev/null \
		|| { $(BIN)/python -m pip install -q 'anthropic>=2,<3' 'pydantic-ai-slim[openai]>=2,<3' \
		&& $(BIN)/python -m pip install -q --no-deps 'mini-swe-agent>=2,<3'; }
	$(TEST_ENV) MSWEA_SILENT_STARTUP=1 $(BIN)/python -m pytest -m programs tests/agents/serving/test_programs_of_others.py $(ARGS)

lint: setup ## check style and that floors import only downwards
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf .cache/layout && mkdir -p .cache && cp -RL .typing .cache/layout
	cd .cache/layout && $(abspath $(BIN))/lint-imports --no-cache --config ../../pyproject.toml

types: setup ## check types, strictly, over every floor
	$(BIN)/mypy

format: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutate: setup ## count the small changes of FILES="algorithms/losses.py" that the tests notice
	@$(BIN)/python -c 'import mutmut' 2>/dev/null || $(BIN)/python -m pip install -q -c constraints.txt -e '.[mutation]'
	$(TEST_ENV) $(BIN)/python scripts/mutate.py $(FILES)

dist: setup ## build the source distribution and the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --no-isolation

clean: ## remove what was built, the virtual environment too
	rm -rf $(VENV) .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
