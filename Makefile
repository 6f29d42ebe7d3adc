# Every command of the project. `make` alone lists them.
# Works with the GNU make 3.81 that macOS ships: no grouped targets, no .ONESHELL.

VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS      ?= dev
SHELL       := bash

# One thread a process: two workers of two threads each on two cores are five times slower.
export OMP_NUM_THREADS      ?= 1
export MKL_NUM_THREADS      ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export PYTHONHASHSEED       ?= 0
export TOKENIZERS_PARALLELISM ?= false

# SYSTEM=1 uses $(PYTHON) as it stands, without a virtual environment: that is how the weekly
# job runs the chapters on the packages of Colab's own image.
ifdef SYSTEM
PYTHON ?= python3
PY     := $(PYTHON)
READY  :=
else
PY     := $(VENV)/bin/python
READY  := $(VENV)/.installed
endif
S := book/scripts

.DEFAULT_GOAL := help
.PHONY: help book test notebooks execute serve demo lab train bench lint format clean \
        offline pdf gettext address lock

help: ## list the commands
	@echo "Usage: make COMMAND"
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile
	@echo "Variables: CHAPTER=05  PYTHON=python3.12  NO_BROWSER=1  CONSTRAINTS= (newest versions)"

# The environment. The stamp is written last, so an interrupted install is done again; it is
# older than pyproject.toml or the constraints whenever one of them has changed.
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	@VENV='$(VENV)' PYTHON='$(PYTHON)' CONSTRAINTS='$(CONSTRAINTS)' EXTRAS='$(EXTRAS)' \
		bash $(S)/install.sh

book: $(READY) ## build the book (stored outputs, warnings are errors) and print where it is
	@$(PY) $(S)/build.py html

test: $(READY) ## everything: tests, doctests, every chapter as in Colab, the built book, the browser
	@$(PY) $(S)/check.py

notebooks: $(READY) ## only run every chapter as Colab would (CHAPTER=05 for one)
	@$(PY) $(S)/notebooks.py $(CHAPTER)

execute: $(READY) ## run the chapters, store outputs and ledger rows (CHAPTER=05 for one)
	@$(PY) $(S)/execute.py $(CHAPTER)

serve: book ## build the book and serve it on this machine
	@echo "http://localhost:8000 (Ctrl-C ends it)"
	@$(PY) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

demo: $(READY) ## the service of chapter 15 on this machine, with its page at localhost:8000/page
	@$(PY) -m mmlib.serving

lab: $(READY) ## open JupyterLab on the chapters
	@$(PY) -m jupyter lab chapters

train: $(READY) ## the long run of one chapter: checkpoint, card, ledger rows (CHAPTER=NN)
	@test -n "$(CHAPTER)" || { echo "Say which chapter: make train CHAPTER=05" >&2; exit 2; }
	@env -u OMP_NUM_THREADS -u MKL_NUM_THREADS -u OPENBLAS_NUM_THREADS \
		$(PY) $(S)/train.py $(CHAPTER)

bench: $(READY) ## speed and memory beside peers, and the page on it (run it alone on the machine)
	@OMP_NUM_THREADS=2 MKL_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 MMLIB_NO_SHAPES=1 \
		MMLIB_BENCH_REPORT=book/performance.json $(PY) -m pytest tests/bench --benchmark-disable

lint: $(READY) ## check style and format of code and notebooks
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

format: $(READY) ## mend style and format where a tool can
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

offline: $(READY) ## the book as a zip to read without a network
	@$(PY) $(S)/build.py offline

pdf: $(READY) ## the book as a printable PDF (needs Chromium)
	@$(PY) $(S)/build.py pdf

gettext: $(READY) ## the message catalogues for a translation
	@$(PY) $(S)/build.py gettext

address: $(READY) ## write the repository's public address everywhere (URL=https://github.com/owner/name)
	@test -n "$(URL)" || { echo "Say which: make address URL=https://github.com/owner/name" >&2; exit 2; }
	@$(PY) $(S)/address.py "$(URL)"

lock: $(READY) ## write constraints.txt and requirements.lock from what is installed
	@$(PY) $(S)/lock.py

clean: ## remove what was built (not the virtual environment: rm -r .venv does that)
	rm -rf _build build dist .pytest_cache .ruff_cache .hypothesis .benchmarks
