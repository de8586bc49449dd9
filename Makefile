# Every verb below is what CI and people call; `make help` prints this list from the comments after `##`.

SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Names may be given on the command line: make PYTHON=/path/to/python3.12 run
PYTHON ?= python3
ARGS ?=
JOBS ?= $(shell nproc)

VENV := .venv
# cython-lint calls pycodestyle by name, so the environment's programs come first.
BIN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# The checked build goes before the sources; SAFEPATH keeps `python -m` from putting the current folder before both.
CHECKED := PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR)/build/checked"
# What was done, and when: to the tree's build, and to the environments (these go when .venv goes).
STAMPS := build/stamps
LOAD := .cache/locust-venv
PLACED := $(VENV)/stamps
SOURCES := setup.py $(wildcard core/*.pyx core/*.pxd core/*.h)
# A clone without one of these still builds: they are parts of the product with metadata of their own.
METADATA := pyproject.toml $(wildcard client/python/pyproject.toml)
TESTS ?= tests
# Tests mostly wait for something, so twice as many files as there are processors run beside each other, each in one
# process, and those that take longest begin (tests/conftest.py).
TOGETHER ?= -n $(shell expr 2 '*' $(JOBS)) --dist loadfile --no-loadscope-reorder
# The checked build is for invariants and the ledger of the compiled core. These look at what is not compiled: the page,
# the clients' libraries, the directory in etcd and who leads what by it, the benchmark's reports, docs and tools; at most
# they have a node answer it, which tests/process does in both builds. Once is enough.
UNCHECKED := tests/browser tests/client $(wildcard tests/contract/test_directory*.py) tests/docs \
	tests/k8s tests/loadtest/bench tests/monitoring tests/router/directory tests/router/shards tests/simulation tests/tools
SOAK ?= 20m
# Seeds that no run had before; a failure names its own.
ifndef CHAOS_SEED
CHAOS_SEED := $(shell date +%s)
endif

.PHONY: help run test bench million soak soak-faults soak-120k chaos simulate locust check replay asan valgrind fuzz build build-checked debug docs \
	clean provision test-release test-checked

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build and start everything; options through ARGS="--workers 1"
	@exec $(VENV)/bin/holdfast run $(ARGS)

test: $(PLACED)/dev $(LOAD)/installed build ## install what the tests need, then check, then run all tests, and those of the core against its checked build as well
	@$(MAKE) --no-print-directory provision
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory test-release
	@$(MAKE) --no-print-directory test-checked
	@$(VENV)/bin/python tools/ending.py build/tests

check: $(PLACED)/dev build ## linters, types, stubs and the project's own rules
	@$(BIN) python tools/check.py

bench: build ## measure against the floor program and the peers (see loadtest/); ARGS="fan max --servers holdfast,floor"
	@$(BIN) python -m loadtest.bench $(ARGS)

million: build ## hold 1,000,000 connections for ten minutes; needs the whole machine and about half an hour
	@$(BIN) python -m loadtest.million $(ARGS)

soak: $(PLACED)/dev build ## churn of good and bad clients over 15,000 connections, then nothing may be left; SOAK=24h for longer; then soak-faults
	@ended=0; $(BIN) python -m loadtest.soak --time $(SOAK) $(ARGS) || ended=$$?; \
	$(MAKE) --no-print-directory soak-faults ARGS= || ended=1; exit $$ended

soak-faults: $(PLACED)/dev build provision ## each fault of chaos under 400 seeds that no run had before; again with CHAOS_SEED=n
	@echo "CHAOS_SEED=$(CHAOS_SEED)"
	@$(BIN) HOLDFAST_CHAOS=full HOLDFAST_CHAOS_SEED=$(CHAOS_SEED) HOLDFAST_BUILD=release PYTHONSAFEPATH=1 \
		pytest -rP tests/chaos/test_faults.py tests/chaos/test_faults_over_redis.py tests/chaos/test_redis_log.py $(ARGS)

soak-120k: build ## hold 120,000 connections with traffic for ten minutes; longer through ARGS="--hold 86400"
	@$(BIN) python -m loadtest.million --soak $(ARGS)

chaos: $(PLACED)/dev build provision ## kills, rolling restarts and zombies at full size (make test has a small form)
	@$(BIN) HOLDFAST_CHAOS=full HOLDFAST_BUILD=release PYTHONSAFEPATH=1 pytest -rP tests/chaos $(ARGS)

simulate: $(PLACED)/dev build ## routers, shards and sessions through 100,000 seeds of trouble (make test has 2,000)
	@$(BIN) HOLDFAST_SIM=full HOLDFAST_BUILD=release PYTHONSAFEPATH=1 pytest tests/simulation $(ARGS)

replay: $(PLACED)/dev build provision ## send every line of the fortunes packages through mixed clients
	@$(BIN) python loadtest/replay.py $(ARGS)

asan: $(PLACED)/dev build $(STAMPS)/asan provision ## the core's tests under AddressSanitizer, LeakSanitizer and UBSan
	@$(BIN) python tools/sanitize.py asan $(ARGS)

valgrind: $(PLACED)/dev build $(STAMPS)/checked provision ## the core's tests of structures and loops under valgrind
	@$(BIN) python tools/sanitize.py valgrind $(ARGS)

fuzz: $(PLACED)/dev build ## 200,000 random and mutated frames and handshakes; SEED and count through ARGS
	@$(BIN) python tests/fuzz/run.py $(ARGS)

locust: $(LOAD)/installed build ## locust's load users, headless, against make run's gateway or one of its own; see loadtest/
	@$(BIN) python loadtest/run_locust.py $(ARGS)

build: $(PLACED)/installed $(STAMPS)/release $(STAMPS)/bytecode ## the release build, in place, in .venv

build-checked: $(STAMPS)/checked ## the checked build (invariants, poison, audits), in build/checked

debug: $(PLACED)/installed $(STAMPS)/checked ## start everything from the checked build
	@$(CHECKED) exec $(VENV)/bin/holdfast run $(ARGS)

docs: $(PLACED)/dev build ## check that the examples in the docs are true, and preview the next changelog
	@$(BIN) pytest -q tests/docs
	@$(VENV)/bin/python tools/changelog.py --draft

clean: ## remove what was built; .venv and downloads stay
	rm -rf build core/*.so core/*.c core/*.html loadtest/bin *.egg-info client/python/*.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

# What follows is called by the verbs above.

provision: $(PLACED)/base
	@$(VENV)/bin/python tools/provision.py

# The two builds run the same tests, but for UNCHECKED unless it is asked for by name. The `pytest` program (not
# `python -m pytest`) keeps the repository's root from the front of the module path, where it would hide build/checked.
test-release: $(PLACED)/dev build
	@mkdir -p build/tests
	@$(BIN) HOLDFAST_BUILD=release PYTHONSAFEPATH=1 pytest $(TOGETHER) $(TESTS) $(ARGS) 2>&1 | tee build/tests/release.log

test-checked: $(PLACED)/dev build build-checked
	@mkdir -p build/tests
	@$(BIN) HOLDFAST_BUILD=checked $(CHECKED) \
		pytest $(TOGETHER) $(if $(filter tests,$(TESTS)),$(UNCHECKED:%=--ignore=%)) $(TESTS) $(ARGS) 2>&1 \
		| tee build/tests/checked.log

$(PLACED)/base: pyproject.toml tools/environment.py
	@$(PYTHON) tools/environment.py base
	@mkdir -p $(@D) && touch $@

$(LOAD)/installed: pyproject.toml tools/environment.py
	@$(PYTHON) tools/environment.py load
	@touch $@

$(PLACED)/dev: $(PLACED)/base pyproject.toml
	@$(PYTHON) tools/environment.py dev
	@mkdir -p $(@D) && touch $@

$(STAMPS)/release: $(PLACED)/base $(SOURCES) tools/build.py
	@$(VENV)/bin/python tools/build.py release --jobs $(JOBS)
	@mkdir -p $(@D) && touch $@

# Where PYTHONDONTWRITEBYTECODE is set, every process would compile all that it imports: a node starts in half the time.
$(STAMPS)/bytecode: $(PLACED)/base $(shell find gateway router core -name '*.py')
	@$(VENV)/bin/python -m compileall -q gateway router core
	@mkdir -p $(@D) && touch $@

$(STAMPS)/checked: $(PLACED)/base $(SOURCES) tools/build.py $(shell find gateway router core -type f -not -name '*.so' -not -path '*/__pycache__/*')
	@$(VENV)/bin/python tools/build.py checked --jobs $(JOBS)
	@$(VENV)/bin/python -m compileall -q build/checked
	@mkdir -p $(@D) && touch $@

$(STAMPS)/asan: $(PLACED)/base $(SOURCES) tools/build.py $(shell find gateway router core -type f -not -name '*.so' -not -path '*/__pycache__/*')
	@$(VENV)/bin/python tools/build.py asan --jobs $(JOBS)
	@mkdir -p $(@D) && touch $@

$(PLACED)/installed: $(METADATA) $(PLACED)/base | $(STAMPS)/release
	@$(PYTHON) tools/environment.py install
	@mkdir -p $(@D) && touch $@
