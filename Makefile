# Every target sets up what it needs: Python 3.11 or newer, git and make are all that has to be there.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# The oldest versions supported want an old Python too; where there is no python3.11, the usual one is tried.
OLDEST_PYTHON ?= $(or $(shell command -v python3.11 2>/dev/null),$(PYTHON))
OLDEST_VENV := .venv-oldest
OLDEST := $(OLDEST_VENV)/bin/python

# Options of `make report`, as in: make report DATA_ROOT=my_runs ETA="1.6e-6 3.2e-6" SUBSET_SIZE=128
comma := ,
option = $(if $($(1)),--$(2) "$($(1))")
REPORT_OPTIONS = $(call option,DATA_ROOT,data-root) $(call option,LARGE_BATCH,large-batch) \
	$(call option,SMALL_BATCH,small-batch) $(foreach eta,$(subst $(comma), ,$(ETA)),--eta $(eta)) \
	$(call option,SUBSET_SIZE,subset-size) \
	$(call option,TOLERANCE,tolerance) $(call option,PROBABILITY,probability) \
	$(call option,OUT,out)
NAMES := DATA_ROOT LARGE_BATCH SMALL_BATCH ETA SUBSET_SIZE TOLERANCE PROBABILITY OUT PYTHON
MISSPELT = $(filter-out $(NAMES),$(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name))))

# Tests of analysis_helpers.measure, which alone needs PyTorch, in an environment of their own.
MEASURE_VENV := .venv-measure
MEASURE := $(MEASURE_VENV)/bin/python
MEASURE_NOTEBOOK := notebooks/08_measure_a_model.ipynb

# Runs notebooks in place and keeps of their metadata what is the same everywhere.
STORE := -m jupyter nbconvert --to notebook --inplace --execute --ClearMetadataPreprocessor.enabled=True \
	--ClearMetadataPreprocessor.preserve_cell_metadata_mask="{'tags'}" \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask="{('kernelspec',), ('language_info', 'name')}"

# A library as old as that uses what newer ones around it deprecate; that is nothing to learn from.
OLD_NEIGHBOURS := -W ignore::DeprecationWarning

MAKEFLAGS += --no-print-directory

.PHONY: help report test test-slow test-oldest test-measure mutants bench bench-large fuzz lint lab notebooks notebook-measure pictures samples calibration constraints clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

report: $(READY) ## Run the notebooks and write reports/index.html
	$(if $(MISSPELT),$(error make report has no option $(MISSPELT); there are $(NAMES)))
	@$(RUN) -m analysis_helpers report $(REPORT_OPTIONS)

test: $(READY) lint ## Run everything that is quick: lint, types, tests, doctests, notebooks
	$(RUN) -m pytest -m "not slow" -n 2 --dist loadfile
	$(RUN) -m pytest --nbval --nbval-current-env -n 2 --dist loadfile notebooks

test-slow: $(READY) ## Run the tests that take long
	$(RUN) -m pytest -m slow

test-oldest: $(OLDEST_VENV)/.ready ## Run the quick tests with the oldest versions supported
	$(OLDEST) -m pytest -m "not slow" -n 2 --dist loadfile $(OLD_NEIGHBOURS)
	$(OLDEST) -m pytest --nbval --nbval-current-env -n 2 --dist loadfile notebooks $(OLD_NEIGHBOURS)

test-measure: $(MEASURE_VENV)/.ready ## Run types, tests, doctests and the notebook of measuring a model (needs PyTorch)
	$(MEASURE) -m mypy analysis_helpers/measure/*.py tests/measure/*.py
	OMP_NUM_THREADS=1 $(MEASURE) -m pytest -n 2 --dist loadfile tests/measure analysis_helpers/measure
	OMP_NUM_THREADS=1 $(MEASURE) -m pytest --nbval --nbval-current-env $(MEASURE_NOTEBOOK)

mutants: $(READY) ## Change the code in a thousand ways and count what no test notices
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[mutants]" --constraint constraints.txt
	$(RUN) -m tests.mutants

bench: $(READY) ## Measure against plain loops and peers
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[bench]" --constraint constraints.txt
	$(RUN) -m tests.benchmarks

bench-large: $(READY) ## Take a run of 262,144 sequences from file to figure
	$(RUN) -m tests.benchmarks.large

fuzz: $(READY) ## Damage results files at random for ten minutes
	FUZZ_SECONDS=600 $(RUN) -m pytest -s tests/runs/test_damage.py

lint: $(READY) ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# In containers the user is often root, which JupyterLab refuses unless it is told.
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

lab: $(READY) ## Open JupyterLab on the notebooks; options by LAB_ARGS, as in LAB_ARGS="--no-browser --ip=0.0.0.0"
	$(RUN) -m jupyter lab --notebook-dir=notebooks --LabApp.default_url=/lab/tree/00_start_here.ipynb $(ROOT) $(LAB_ARGS)

notebooks: $(READY) ## Run the notebooks in place and store their outputs, all but the one that needs PyTorch
	$(RUN) $(STORE) $(filter-out $(MEASURE_NOTEBOOK),$(wildcard notebooks/*.ipynb))

notebook-measure: $(MEASURE_VENV)/.ready ## Run that one in place and store its outputs
	OMP_NUM_THREADS=1 $(MEASURE) $(STORE) $(MEASURE_NOTEBOOK)

pictures: $(READY) ## Make the pictures of the README anew (needs Chromium)
	$(RUN) -m tests.pictures

samples: $(READY) ## Make data_samples anew
	$(RUN) -m analysis_helpers simulate data_samples

calibration: $(READY) ## Hold the suite against known truth over 10,000 batches (half an hour)
	$(RUN) -m tests.calibration

constraints: ## Pin the newest versions that fit, in constraints.txt
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev,bench,mutants]"
	$(RUN) -m pip freeze --exclude-editable > constraints.txt

clean: ## Remove what the targets made
	rm -rf $(VENV) $(OLDEST_VENV) $(MEASURE_VENV) mutants reports build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "The venv module of $(PYTHON) does not work (on Debian and Ubuntu: install python3-venv)"; exit 1; }
	@echo "Installing into $(VENV) (once; a minute or two)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable ".[dev]" --constraint constraints.txt
	@touch $(READY)

$(MEASURE_VENV)/.ready: pyproject.toml constraints.txt constraints-measure.txt
	@$(PYTHON) -m venv $(MEASURE_VENV)
	@echo "Installing PyTorch and the rest into $(MEASURE_VENV) (once; minutes)"
	@$(MEASURE) -m pip install --quiet --disable-pip-version-check --editable ".[dev,test-measure]" \
		--constraint constraints.txt --constraint constraints-measure.txt
	@touch $@

$(OLDEST_VENV)/.ready: pyproject.toml tests/oldest.py
	@rm -rf $(OLDEST_VENV)
	@$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	@$(OLDEST) -m tests.oldest > $(OLDEST_VENV)/constraints.txt
	@echo "Installing the oldest versions supported into $(OLDEST_VENV) (once; a minute or two)"
	@$(OLDEST) -m pip install --quiet --disable-pip-version-check --editable ".[dev]" \
		--constraint $(OLDEST_VENV)/constraints.txt
	@touch $@
