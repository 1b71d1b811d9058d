# Two commands for a fresh clone: `make demo` and `make test`; and `make check`, the quick part of the
# tests, while you work. All are safe to repeat.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := .venv/bin
QUICK := not slow and not slurm and not s3 and not gpu

.PHONY: demo test check lint clean

demo: .venv/demo
	$(BIN)/snakemake --cores $(CORES) demo

test: lint
	$(BIN)/snakemake --lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m "$(QUICK)"

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/lint-imports

# A stamp for each set of packages: installing again when nothing changed takes no time.
.venv/demo: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Expected Python 3.11 or newer, got ' + sys.version)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/test: .venv/demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# What make and the tests made; never results, which may have taken days.
clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
