# Everything a newcomer needs: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of fifteen thousand files few are ever imported: each is compiled when it is, once for all later processes.
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-compile
unexport PYTHONDONTWRITEBYTECODE
# Pinned: an unpinned torch brings gigabytes of GPU packages along. torchvision fits it, without its own torch.
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0

# The floors of pyproject.toml, as they are tested, and the rooms that touch what they are floors of.
FLOORS = $(shell $(PYTHON) -c 'import tomllib; \
	project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	needed = project["dependencies"] + project["optional-dependencies"]["desk"]; \
	print(*(package.replace(">=", "==") for package in needed))')
ROOMS := $(addprefix tests/,agents build bundle devices envs frontends graphs runtime training)

.PHONY: demo test test-all test-versions test-lowest test-newest lint format docs check-cuts clean

demo: $(VENV)/runtime  ## train for two devices, run the bundle, compare with a stock session
	@mkdir -p demo
	$(BIN)/splitload train --device s20 -o demo/s20.splitload
	$(BIN)/splitload train --device host -o demo/host.splitload
	$(BIN)/splitload run demo/host.splitload
	$(BIN)/splitload bench zoo:mobilenet_v1 --bundle demo/host.splitload --runs 5

test: $(VENV)/dev  ## the tests that continuous integration runs, a file at a time on each processor
	$(BIN)/python -m pytest -n logical --dist loadfile --max-worker-restart 1

test-all: $(VENV)/dev  ## those that need minutes, gigabytes or root as well
	$(BIN)/python -m pytest -m "" -o faulthandler_exit_on_timeout=false

test-versions: test-lowest test-newest  ## the lowest and the newest versions of onnxruntime, numpy, Gymnasium and onnx

test-lowest: PINS = $(FLOORS)
test-lowest test-newest: | $(VENV)/bin/python  ## each in an environment that is thrown away
	rm -rf build/$@
	$(PYTHON) -m venv build/$@
	build/$@/bin/python -m pip --disable-pip-version-check install -qq --no-compile $(TORCH) $(PINS) --editable '.[dev]'
	build/$@/bin/python -m pip --disable-pip-version-check install -qq --no-compile --no-deps $(TORCHVISION) pillow
	build/$@/bin/python -m pip --disable-pip-version-check list | grep -E '^(numpy|onnxruntime|gymnasium|onnx) '
	build/$@/bin/python -m pytest -n logical --dist loadfile $(ROOMS)
	rm -rf build/$@

lint: $(VENV)/dev  ## ruff, mypy and the import rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/docs  ## the documentation with the API reference, into build/docs; broken links and docstrings fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

check-cuts: $(VENV)/dev  ## every cut point of every zoo model and every light model of onnx; about an hour
	$(BIN)/python -m splitload.studies.cuts

clean:
	rm -rf $(VENV) demo build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "splitload needs Python 3.11 or newer: make PYTHON=python3.x ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[desk]'
	@touch $@

$(VENV)/dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) $(TORCH)
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps $(TORCHVISION) pillow
	@touch $@ $(VENV)/runtime

$(VENV)/docs: pyproject.toml | $(VENV)/bin/python
	$(PIP) --editable '.[docs]'
	@touch $@
