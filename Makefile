# mixflow's commands; `make help` lists them. They need make and a Python >= 3.11, nothing else.

# To be set on the command line, as in: make test PYTHON=python3.13 VENV=.venv-3.13 ARGS="-k scan"
PYTHON := python3
PYTHON_LATEST = python3.14 python3.13 python3.12 $(PYENV_LATEST)
PYTHON_0.11 = $(PYTHON_LATEST)
VENV := .venv
VENV_LATEST := .venv-latest
VENV_0.11 := .venv-0.11
JOBS := 2
ARGS :=

# pyenv's, newest first. Python 3.15 is left out until JAX is there for it.
PYENV_LATEST = $(shell ls -d $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[2-4].*[0-9]/bin/python \
                 2>/dev/null | sort -rV)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types format docs setup-latest test-latest clean
.PHONY: setup-0.11 test-0.11 test-flags mutants

help: ## list these commands
	@sed -n 's/^\([a-z0-9.-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 22

setup: $(VENV)/.installed ## install mixflow, and all that these commands need, in .venv

demo: setup ## optimise the data-weighting example
	$(VENV)/bin/mixflowc optimize examples/data_weighting.py

test: check ## check, then test with the JAX that python3 gets
	$(call pytest,$(VENV))
	@jax=$$($(VENV)/bin/python -c 'from importlib.metadata import version; print(version("jax"))'); \
	case $$jax in \
	  0.10.*) echo "This tested JAX $$jax only: 'make test-latest' tests the newest (Python >= 3.12)." ;; \
	  *) echo "This tested JAX $$jax only: 'make test PYTHON=python3.11 VENV=.venv-3.11' tests 0.10." ;; \
	esac

test-latest: setup-latest ## check types and test with the newest JAX (Python >= 3.12)
	$(call pyright,$(VENV_LATEST))
	$(call pytest,$(VENV_LATEST))

test-0.11: setup-0.11 ## test what rests on JAX's insides with JAX 0.11 (Python >= 3.12)
	$(call pytest,$(VENV_0.11)) $(INSIDES)

test-flags: setup setup-latest ## the same with the flags that JAX will make its defaults
	$(FLAGS) $(call pytest,$(VENV)) $(INSIDES)
	$(FLAGS) $(call pytest,$(VENV_LATEST)) $(INSIDES)

# cosmic-ray changes the file while it works, so it is given a copy of the tree. `X | Y` is a type
# nearly everywhere, and types are not run.
MODULE := mixflow/passes/canonicalize.py
TESTS := tests/passes/test_canonicalize.py
SAMPLE := 1000
MUTANTS := $(or $(TMPDIR),/tmp)/mixflow-mutants

define MUTANTS_CONFIG
[cosmic-ray]
module-path = "$(MODULE)"
timeout = 600.0
excluded-modules = []
test-command = "$(abspath $(VENV))/bin/python -m pytest -x -q -n0 -p no:cacheprovider $(TESTS)"
[cosmic-ray.distributor]
name = "local"
[cosmic-ray.filters.operators-filter]
exclude-operators = ["core/ReplaceBinaryOperator_BitOr_.*", "core/RemoveDecorator"]
endef
export MUTANTS_CONFIG

define DRAW_MUTANTS
import sqlite3
with sqlite3.connect("session.sqlite") as session:
    drawn = "SELECT job_id FROM work_items ORDER BY random() LIMIT $(SAMPLE)"
    session.execute(f"CREATE TEMP TABLE drawn AS {drawn}")
    for table in ("mutation_specs", "work_results", "work_items"):
        session.execute(f"DELETE FROM {table} WHERE job_id NOT IN drawn")
endef
export DRAW_MUTANTS

mutants: setup ## break lines of MODULE=FILE or folder, SAMPLE=N of them, and list what TESTS=FILES let pass
	$(VENV)/bin/python -m pip install --quiet -e '.[mutants]'
	rm -rf $(MUTANTS) && git clone --quiet . $(MUTANTS)
	echo "$$MUTANTS_CONFIG" > $(MUTANTS)/session.toml
	cd $(MUTANTS) && export PYTHONPATH=$$PWD JAX_PLATFORMS=cpu && \
	  $(abspath $(VENV))/bin/cosmic-ray init session.toml session.sqlite && \
	  $(abspath $(VENV))/bin/cr-filter-operators session.sqlite session.toml && \
	  $(abspath $(VENV))/bin/python -c "$$DRAW_MUTANTS" && \
	  $(abspath $(VENV))/bin/cosmic-ray exec session.toml session.sqlite && \
	  $(abspath $(VENV))/bin/cr-report --surviving-only --show-diff session.sqlite

setup-0.11: $(VENV_0.11)/.installed ## the same as setup, with JAX 0.11 in .venv-0.11

setup-latest: $(VENV_LATEST)/.installed ## the same as setup, in .venv-latest (Python >= 3.12)

check: lint types ## lint, see that the code is formatted, check the types

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

types: setup
	$(call pyright,$(VENV))

format: setup ## format the code, and correct what ruff can correct by itself
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: setup ## build the documentation site in site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

clean: ## remove what building, testing and the demo left (environments stay)
	rm -rf build dist site mixflow-out .pytest_cache .ruff_cache
	find . -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# pyright,VENV: JAX's annotations differ between its versions. The environment variable keeps it from
# asking the network for a newer pyright.
pyright = PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(1)/bin/pyright --pythonpath $(1)/bin/python

# pytest,VENV: the tests are written for the CPU, whatever else the machine has.
pytest = JAX_PLATFORMS=cpu $(1)/bin/python -m pytest -n $(JOBS) --dist=worksteal $(ARGS)

# Tests of what JAX may change, and its flags that change it: with them, `jax.checkpoint` and
# `jax.custom_vjp` make equations of another kind.
INSIDES := $(addprefix tests/compiler/,test_jax_compat.py capture derivative barriers rules) tests/passes
FLAGS := JAX_REMAT3=1 JAX_CUSTOM_VJP3=1

# install,INTERPRETERS,MINOR,VARIABLE,VERSIONS: install in the environment that this stamp file is in,
# if need be with these versions of packages. Where that has no working Python >= 3.MINOR, make it with the first of the interpreters that is one; a
# name on PATH proves nothing (pyenv has some that only print an error), so each is run.
define install
@for python in $(@D)/bin/python $(1); do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, $(2)))' 2>/dev/null && break; python=; \
done; \
[ "$$python" ] || { \
  echo "No Python >= 3.$(2) here (tried: $(strip $(1))): install one, or add $(3)=/path/to/python" >&2; \
  exit 1; \
}; \
[ "$$python" = $(@D)/bin/python ] || { set -x; "$$python" -m venv --clear $(@D); }
$(@D)/bin/python -m pip install --editable '.[dev]' $(4)
@touch $@
endef

# pip runs again only after pyproject.toml has changed.
$(VENV)/.installed: pyproject.toml
	$(call install,$(PYTHON),11,PYTHON)

$(VENV_LATEST)/.installed: pyproject.toml
	$(call install,$(PYTHON_LATEST),12,PYTHON_LATEST)

$(VENV_0.11)/.installed: pyproject.toml
	$(call install,$(PYTHON_0.11),12,PYTHON_0.11,'jax==0.11.*' 'jaxlib==0.11.*')
