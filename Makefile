# `make tune` and `make test` need only python3.11 (or 3.12) and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: tune test test-fast test-long families check environment constraints wheel clean

tune: $(VENV)/.installed  ## the quickstart search, from nothing to a registered champion
	$(BIN)/python workflows/tune.py experiments/quickstart.yaml

# A search waits for a third of its time: two at once, each on a cluster of its own, take less than one after the other.
test: $(VENV)/.installed-dev  ## every check, and every test but the longest
	$(MAKE) --no-print-directory check
	$(MAKE) --no-print-directory test-fast
	$(BIN)/python -m pytest tests/ray tests/end_to_end --numprocesses 2 --dist loadfile

test-fast: $(VENV)/.installed-dev  ## the pure tests only, one process a core with one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit --numprocesses auto --maxprocesses 4 --dist loadfile

test-long: $(VENV)/.installed-dev  ## the whole GPU kit on the CPU, searches under more faults, trials that go wrong
	$(BIN)/python -m pytest -m long --numprocesses 2 --dist loadfile

families: $(VENV)/.installed-dev  ## every family of models through all that is done with one, half an hour
	$(BIN)/python -m pytest tests/unit/test_families.py -m ""

check: $(VENV)/.installed-dev  ## format, lint, types, spelling
	$(BIN)/ruff format --check components workflows tests experiments
	$(BIN)/ruff check components workflows tests experiments
	$(BIN)/mypy
	$(BIN)/codespell components workflows tests README.md experiments

environment: $(VENV)/.installed

$(VENV)/.installed: requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	touch $@

constraints: $(VENV)/.installed-dev  ## pins what lies below the pins, once these have changed and the tests have passed
	echo "# What lies below the pins of requirements*.txt, as it was tested with them; made by \`make constraints\`." > constraints.txt
	$(BIN)/pip freeze --exclude-editable -r requirements.txt -r requirements-dev.txt | sed '1,/added by pip freeze/d' | sort >> constraints.txt

wheel: environment  ## dist/turnwise-*.whl
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:  ## what searches left here; the environment and the fetched model stay
	rm -rf runs mlflow.db mlartifacts
