# make demo   build the sample library, curate it, show the funnel, the manifest, the report and the UI
# make train-demo   train stages 1 to 3, lite, on the manifest of make demo, and show what they learned
# make test   all tests
# make bench  wall time of curation over wall time of decoding: make bench FILES="a.mp4 b.mp4" (or a folder)

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := demo

export PREFECT_SERVER_ANALYTICS_ENABLED := false
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1
# Users may have pip or Python settings of their own; the project's environment has none. Without compiled modules every
# process of a flow and of the tests would compile a thousand files when it starts.
unexport PYTHONPATH
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo train-demo test lint bench lock clean
.DEFAULT_GOAL := setup

setup: $(VENV)/installed

# uv alone installs: torch and torchvision must come from the same build, and every package in its locked version.
$(VENV)/installed: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: setup
	$(BIN)/python -m benchmarks.demo $(DEMO)

train-demo: setup
	$(BIN)/python -m benchmarks.train_demo $(DEMO)

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m benchmarks.curation $(FILES)

# Resolve anew after a change to the dependencies in pyproject.toml.
lock: $(BIN)/uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
		--extra dev --extra ray pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
