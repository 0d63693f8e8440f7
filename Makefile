# Every target brings what it needs: from a fresh clone, `make demo` is enough. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

LOOP ?= movies
NAME ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 3

# The uv on PATH, or one of our own in var/. Exported, so that what we start uses the same one.
export UV := $(or $(shell command -v uv),$(CURDIR)/var/uv/bin/uv)

# Tools that carry their own list of certificate authorities use the system's, which knows a company's proxy too.
SYSTEM_CERTS := $(wildcard /etc/ssl/certs/ca-certificates.crt)
ifneq ($(SYSTEM_CERTS),)
export SSL_CERT_FILE ?= $(SYSTEM_CERTS)
export REQUESTS_CA_BUNDLE ?= $(SYSTEM_CERTS)
endif

RUN := $(UV) run --no-sync
LOCAL := $(RUN) gyre-local
SOURCES := libs/gyre-core/src libs/gyre-runtime/src libs/gyre-client/src libs/gyre-quality/src libs/gyre-warehouse/src libs/gyre-privacy/src infra/local/src \
	$(patsubst %,services/%/src,gateway features inference trainer deployer monitor)

.PHONY: help setup sync demo up down status logs test test-slow lint breaking types proto docs bench bench-path bench-stream bench-memory bench-features bench-quality bench-redaction bench-training-set bench-idle ci clean

help: ## list the targets
	@if [ -t 1 ]; then color=yes; fi; awk -v color="$${color:-}" -f infra/local/help.awk $(MAKEFILE_LIST)

$(CURDIR)/var/uv/bin/uv:
	@infra/local/heartbeat.sh "bringing uv" infra/local/bring-uv.sh "$(CURDIR)/var/uv"

sync: $(UV) ## install the Python packages alone
	@infra/local/heartbeat.sh "installing Python packages" $(UV) sync --all-packages --frozen $(if $(wildcard .venv/bin/gyre-local),--quiet,--compile-bytecode)

setup: sync ## install everything the stack needs (uv, Python packages, Redis, Prometheus, Kafka, Triton)
	@$(LOCAL) setup

demo: export GYRE_VAR := $(CURDIR)/var/demo
demo: setup ## turn the loop once on real data: make demo LOOP=movies|grocery|simworld, KEEP=1 leaves the stack up
	@loop="$$($(RUN) python examples/available.py "$(LOOP)")"; \
	$(LOCAL) clean; \
	trap '[ -n "$(KEEP)" ] && echo "the stack stays up: GYRE_VAR=var/demo make status, GYRE_VAR=var/demo make down" || $(LOCAL) down' EXIT; \
	$(LOCAL) up --loop "examples/$$loop/gyre.yaml"; \
	eval "$$($(LOCAL) env)"; \
	$(RUN) python "examples/$$loop/demo.py"

up: setup ## start the local stack for examples/$(LOOP)
	@$(LOCAL) up --loop examples/$(LOOP)/gyre.yaml

down: sync ## stop the local stack
	@$(LOCAL) down

status: sync ## show every process and its health
	@$(LOCAL) status

logs: sync ## show the logs: make logs NAME=gateway follows one
	@$(LOCAL) logs $(if $(NAME),$(NAME) --follow)

test: setup ## unit, adapter, gRPC and end-to-end tests: make test PYTEST_ARGS="services/gateway -x" TEST_WORKERS=0
	@$(RUN) pytest -m "not slow" -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: setup ## soaks and large runs
	@$(RUN) pytest -m slow $(PYTEST_ARGS)

lint: sync ## ruff, import contracts, buf, generated docs
	@infra/local/heartbeat.sh "linting" $(RUN) ruff check .
	@infra/local/heartbeat.sh "checking formats" $(RUN) ruff format --check .
	@infra/local/heartbeat.sh "checking imports" $(RUN) lint-imports
	@cd proto && $(RUN) buf lint
	@infra/local/heartbeat.sh "checking docs" $(RUN) python docs/generate.py --check

breaking: sync ## refuse protos that break those of the commit before
	@infra/local/heartbeat.sh "comparing protos" $(RUN) proto/breaking.sh

types: sync ## mypy --strict over all sources
	@infra/local/heartbeat.sh "checking types" $(RUN) mypy $(SOURCES) docs/generate.py docs/contracts.py

proto: sync ## check the protos and generate the stubs
	@$(RUN) proto/generate.sh

docs: sync ## write docs/reference from the declarations of topics, metrics, ports and settings
	@$(RUN) python docs/generate.py

bench: bench-path bench-stream bench-memory bench-features bench-quality bench-redaction bench-training-set bench-idle ## all benchmarks

bench-path: setup ## Rank through the whole mesh and Kafka to Redis, beside bare baselines
	@infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_path.py

bench-stream: setup ## Kafka to Redis in one worker, beside a bare aiokafka reader, and how fresh features are
	@infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_stream.py

bench-memory: setup ## what a million users and items of the movies loop take in Redis
	@infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_memory.py

bench-features: setup ## GetFeatures beside Feast's Python server on the same Redis and data; Feast goes into var/bench/feast
	@infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_features.py

bench-idle: setup ## what the whole stack takes while nobody asks it anything
	@infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_idle.py

bench-training-set: sync ## training sets by attribution join, beside pandas and Feast: make bench-training-set ARGS="--full"
	@infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_training_set.py $(ARGS)

bench-quality: sync ## data-quality checks on real data, beside their baselines: make bench-quality ARGS="--full"
	@OMP_NUM_THREADS=1 infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_quality.py $(ARGS)

bench-redaction: sync ## redaction on unseen texts: recall, precision, the worst of 100,000 fuzzed texts
	@infra/local/heartbeat.sh "measuring" $(RUN) python tests/load/bench_redaction.py $(ARGS)

ci: ## what CI runs
	@.ci/run

clean: ## forget the local stack's data and logs (it must be down)
	@$(LOCAL) clean
