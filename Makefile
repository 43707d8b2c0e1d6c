# One vocabulary, shared with CI. `make demo`, `make play` and `make test` need only Debian's python3, python3-venv and make.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PACS   ?=

.PHONY: demo play test test-all compose-test lint docs faults bench policies completion attacks scale soak mutants up
.DEFAULT_GOAL := help

help: ## these lines
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/running ## real studies in, rows out, compared; PACS=orthanc sends through a real Orthanc
	@$(BIN)/python -m bench.demo --pacs "$(PACS)"

play: $(VENV)/running ## images that go on coming, and the live page to watch them on, until Ctrl-C
	@$(BIN)/python -m bench.play $(ARGS)

test: $(VENV)/testing ## the tests but for the slow ones; missing peers are named and skipped
	@$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/testing ## every test
	@$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

compose-test: $(VENV)/testing ## docker compose up and the systemd units, really run; needs a Docker engine
	@$(BIN)/python -m pytest -n 0 tests/e2e/test_compose.py tests/e2e/test_systemd_units.py $(ARGS)

lint: $(VENV)/testing ## ruff and mypy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

docs: $(VENV)/testing ## the reference tables of README and docs, written from the code
	@$(BIN)/python -m bench.docs

faults: $(VENV)/testing ## every fault of docs/reliability.md, many times; ends with lost=0 doubled=0
	@$(BIN)/python -m bench.faults $(ARGS)

bench: $(VENV)/testing ## our gateway beside DCMTK, Orthanc, dicom-rs, pynetdicom and a floor, into docs/benchmarks.md; ARGS=--quick: a look
	@$(BIN)/python -m bench.receive $(ARGS)

policies: $(VENV)/testing ## when series and studies are over, in virtual time, into docs/completion.md; TRACES=folder judges yours
	@$(BIN)/python -m bench.completion $(if $(TRACES),--traces "$(TRACES)") $(ARGS)

completion: policies ## the same, by its name until 0.2

scale: $(VENV)/testing ## two gateways, two servers, HAProxy, PostgreSQL, kill -9, hosts cut off (as root); ends with lost=0 doubled=0
	@$(BIN)/python -m bench.scale $(ARGS)

soak: $(VENV)/testing ## a year in an hour: 50,000 series, restarts, purges; what grows; ends with lost=0 doubled=0. ARGS="--series 2000": a look
	@$(BIN)/python -m bench.soak $(ARGS)

attacks: $(VENV)/testing ## hostile peers, while a good one keeps working; ends with tried=T survived=T
	@$(BIN)/python -m bench.attacks $(ARGS)

mutants: $(VENV)/testing ## the code broken in small ways, a seeded sample; which breaks no fast test notices. ARGS="--modules idle --sample 20"
	@$(BIN)/python -m bench.mutants $(ARGS)

up: ## Orthanc, server and gateway in containers
	docker compose up --build

$(VENV)/running: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "venv is missing (Debian: apt-get install python3-venv)"; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)" && $(PYTHON) -m venv $(VENV); }
	@$(BIN)/python -m bench.install requirements.txt
	@touch $@

$(VENV)/testing: requirements-dev.txt $(VENV)/running
	@$(BIN)/python -m bench.install requirements-dev.txt
	@touch $@
