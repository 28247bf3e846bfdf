# `make demo` and `make test` need Python 3.11 or newer with venv, and make; nothing else.
# Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INPUTS := pyproject.toml constraints.txt constraints-torch.txt
EXTRAS := dev,research,fidelity,benchmarks,compressed,docs,gguf,report,track,ui,ray,storage
# A PyTorch that is installed is kept, whatever its build; the tested one is for where none is.
PINS = -c constraints.txt $$($(BIN)/python -c 'import importlib.util as u; \
  print("" if u.find_spec("torch") else "-c constraints-torch.txt")')
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 PIP_NO_INDEX=1
export PYTHONUTF8 := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test types suite test-ui docs newest release-check audit soak bench bench-search bench-scale models clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# .ci/run sets INSTALL_ARGS=--no-compile: pip would compile every file, also those never imported.
$(VENV)/.user: $(VENV)/.made $(INPUTS)
	$(PIP) install -q $(INSTALL_ARGS) -e . $(PINS)
	@touch $@

# The optional extras too: they are tested like everything else.
$(VENV)/.dev: $(VENV)/.made $(INPUTS)
	$(PIP) install -q $(INSTALL_ARGS) -e '.[$(EXTRAS)]' $(PINS)
	@touch $@ $(VENV)/.user

install: $(VENV)/.user ## Make .venv and install heretic into it

demo: $(VENV)/.user ## Remove a planted refusal from a small real model, start to end
	$(BIN)/heretic demo

# Three processes for two cores: a test needs one thread, and many wait for programs that they start.
# PYTEST_ARGS replaces this: make test PYTEST_ARGS=tests/engine
PYTEST_ARGS ?= -n $$(($$(getconf _NPROCESSORS_ONLN) * 3 / 2)) --maxprocesses 8 --dist worksteal

# Everything from outside is fetched before pytest starts; pytest itself runs offline.
test: $(VENV)/.dev ## Lint, check types, run all tests
	$(BIN)/python -m heretic.demo.base
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j 2 types suite

# Beside each other: mypy keeps one core busy.
types: $(VENV)/.dev
	$(BIN)/mypy

suite: $(VENV)/.dev
	$(OFFLINE) $(BIN)/python -m pytest $(PYTEST_ARGS)

# They take a Chromium on the PATH and download none. They are no part of `make test`.
test-ui: $(VENV)/.dev ## Test pages in a real browser
	$(OFFLINE) $(BIN)/python -m pytest -q -o python_files='check_*.py' -n 2 --dist worksteal tests/ui

# Strict: a link that leads nowhere, or a page that the navigation lacks, is an error. (Not with
# --quiet, which counts no warnings.)
docs: $(VENV)/.dev ## Build the documents as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Beyond the upper bounds of pyproject.toml too: this is where one learns that they can be raised.
NEWEST := transformers torch optuna peft datasets
newest: ## Run all tests with the newest releases, in an environment of their own (PYTEST_ARGS=...)
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install -q --upgrade -e '.[$(EXTRAS)]'
	.venv-newest/bin/python -m pip install -q --upgrade $(NEWEST)
	.venv-newest/bin/python -m pip list | grep -iE '^($(subst $() ,|,$(NEWEST))) '
	.venv-newest/bin/python -m heretic.demo.base
	$(OFFLINE) .venv-newest/bin/python -m pytest $(PYTEST_ARGS)

# Commands or paths of interpreters: make release-check RELEASE_PYTHONS="python3.12 python3.13"
RELEASE_PYTHONS ?= python3.11 python3.12 python3.13
release-check: $(VENV)/.dev ## Install by pip, uv and pipx into new environments (gigabytes, not in CI)
	$(BIN)/python -m tests.soak.install $(RELEASE_PYTHONS)

# --strict: a package that the service does not know is a failure, not a package without faults.
audit: ## Look up known vulnerabilities of everything pinned, but those in audit-exceptions.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install -q --upgrade pip-audit
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off \
	  -r constraints.txt -r constraints-torch.txt \
	  $$(sed -n 's/^\([^# ][^ ]*\) .*/--ignore-vuln \1/p' audit-exceptions.txt)

# Inputs of the fuzzing: make soak SOAK_INPUTS=10000
SOAK_INPUTS := 1000000
soak: $(VENV)/.dev ## Kill, damage, fuzz and run for hours what must hold (not in CI)
	@for script in damage long_use kills "fuzz --count $(SOAK_INPUTS)"; do \
	  echo "== $$script"; $(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak.$$script || exit 1; done

CAMPAIGNS := $(addprefix benchmarks/,search.py front_quality.py real_model.py scale.py)
ON_A_GPU := benchmarks/gpu.py
bench: $(VENV)/.dev ## Measure what the README states
	@for script in $(filter-out $(CAMPAIGNS) $(ON_A_GPU),$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-search: $(VENV)/.dev ## Compare searches with the peer's: hours, resumed where it was stopped
	$(BIN)/python benchmarks/search.py

bench-scale: $(VENV)/.dev ## Many workers: simulated, killed, and real ones of this machine (an hour)
	@for part in driver quality kills local; do \
	  echo "== $$part"; $(BIN)/python benchmarks/scale.py $$part || exit 1; done

models: $(VENV)/.dev ## Ask every model type what must hold of it, and write docs/models.md
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.support.contract --write

clean: ## Remove .venv and everything built; runs and saved models stay
	rm -rf $(VENV) .venv-newest .venv-audit build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
