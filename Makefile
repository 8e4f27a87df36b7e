# The only commands anyone needs. Each sets up what it needs in .venv and can be run first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Not compiled: Python does it for the modules that are imported, once, and of torch, the largest, few are.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-compile
INSTALL := $(BIN)/python $(PIP_INSTALL) -c deploy/constraints.txt
STAMP := $(VENV)/.installed
PROTO_VENV := .venv-proto
SERVICE_VENV := .venv-service
OLDEST_VENV := .venv-oldest
TRITON_VENV := .venv-triton
# Where Python is told to keep no bytecode, every process of every test would compile torch anew, for ten seconds.
unexport PYTHONDONTWRITEBYTECODE
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test test-service test-oldest chaos bench guarantees paper check protos prometheus chromium environments clean
# Tests spend much of their time waiting for servers and processes: two of them at a time, on two cores or on many.
TWO_AT_A_TIME := --numprocesses 2 --dist worksteal

demo: $(STAMP)  ## train, export, build, serve, score, scrape on embedded data; writes runs/demo
	$(BIN)/python -m softkin_training.demo --out runs/demo

test: $(STAMP) $(TRITON_VENV)/.installed prometheus chromium  ## the whole test suite
	$(BIN)/pytest $(TWO_AT_A_TIME)

# The tests scrape with a real one. Where there is no apt-get, install it by hand: `prometheus` and `promtool` on PATH.
prometheus:
	@command -v prometheus >/dev/null && command -v promtool >/dev/null || \
		{ echo "Installing Debian's package prometheus."; $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends prometheus >/dev/null; }

# They open the HTML report in one. Elsewhere: `chromium`, `chromium-browser` or `google-chrome` on PATH.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
		{ echo "Installing Debian's package chromium."; $(SUDO) apt-get update -qq && \
		$(SUDO) apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

SERVICE_TESTS := tests/unit/test_package.py tests/unit/test_fit.py tests/unit/test_recalibrate.py \
	$(patsubst %,tests/server/test_%.py,real_bundle client async_client tritonclient cli cli_security admin_command tracing)

# Not the whole suite again: an import is all that can miss torch. `make check` forbids it in every module of the service,
# test_package.py imports them all, and the rest starts what users start: server, clients, command lines, a bundle's making.
test-service: $(SERVICE_VENV)/.installed $(TRITON_VENV)/.installed  ## the service and its clients, where torch is not installed
	! $(SERVICE_VENV)/bin/python -c "import torch" 2>/dev/null
	$(SERVICE_VENV)/bin/pytest $(TWO_AT_A_TIME) $(SERVICE_TESTS)

# Versions differ in how they promote numbers, in the words of their errors and in which files they refuse: what shows these, too.
test-oldest: $(OLDEST_VENV)/.installed $(TRITON_VENV)/.installed  ## the same with the oldest of everything that pyproject.toml allows
	$(OLDEST_VENV)/bin/pytest $(TWO_AT_A_TIME) $(SERVICE_TESTS) tests/equivalence \
		tests/unit/test_foreign_files.py tests/unit/test_settings.py \
		$(patsubst %,tests/server/test_%.py,client_faults client_rows cli_streams tls)

environments: $(STAMP) $(SERVICE_VENV)/.installed $(OLDEST_VENV)/.installed $(TRITON_VENV)/.installed \
	$(PROTO_VENV)/.installed  ## all that the others set up

chaos: $(STAMP)  ## everything that can go wrong, at full length: about an hour
	$(BIN)/pytest tests/chaos -m "long or not long"

bench: $(STAMP)  ## the scorer beside peers and the machine's ceilings; writes benchmarks/results
	$(INSTALL) --group bench
	$(BIN)/python benchmarks/scorer.py

guarantees: $(STAMP)  ## every figure of docs/guarantees.md
	$(INSTALL) --group bench
	$(BIN)/python benchmarks/guarantees.py

paper: $(STAMP)  ## every figure of docs/paper.md: FASHION_MNIST=FILE MNIST=FILE NOTMNIST=FILE [TEXTURES=FILE]; about two hours
	$(INSTALL) --group bench
	$(BIN)/python benchmarks/paper.py --fashion-mnist $(FASHION_MNIST) --mnist $(MNIST) --notmnist $(NOTMNIST) \
		$(if $(TEXTURES),--textures $(TEXTURES))

check: $(STAMP)  ## lint, types, architecture, generated code
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory protos
	git diff --exit-code --stat -- service/softkin/v1 service/softkin/inference

protos: $(PROTO_VENV)/.installed  ## regenerate service/softkin/v1 and service/softkin/inference from protos/
	$(PROTO_VENV)/bin/python -m grpc_tools.protoc -I protos -I $(PROTO_VENV)/lib/python3*/site-packages \
		--python_out=service --pyi_out=service --grpc_python_out=service protos/softkin/*/*.proto

clean:  ## remove the virtual environments
	rm -rf $(VENV) $(SERVICE_VENV) $(OLDEST_VENV) $(PROTO_VENV) $(TRITON_VENV)

$(STAMP): pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "softkin needs Python 3.11 or newer: make PYTHON=python3.x"; exit 1; }
	@echo "Setting up $(VENV): a few minutes the first time, mostly torch and onnxruntime."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "pip>=25.1"
	$(INSTALL) --group test --group deploy --group peers --group check -e '.[training,datasets,augmentation,tracing]'
	$(INSTALL) --no-deps pytorch-ood  # it asks for torchvision, which its scores do without
	@touch $@

# The oldest ones want Python 3.11 or 3.12: such releases have no wheels for newer ones.
$(SERVICE_VENV)/.installed: VERSIONS := deploy/constraints.txt
$(OLDEST_VENV)/.installed: VERSIONS := deploy/oldest.txt
$(SERVICE_VENV)/.installed $(OLDEST_VENV)/.installed: pyproject.toml deploy/constraints.txt deploy/oldest.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) "pip>=25.1"
	$(@D)/bin/python $(PIP_INSTALL) -c $(VERSIONS) --group test -e '.[tracing]'
	@touch $@

# A client's machine, as tritonclient needs it: an older protobuf, and no server, whose messages it defines too.
$(TRITON_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python $(PIP_INSTALL) "pip>=25.1"
	$(TRITON_VENV)/bin/python $(PIP_INSTALL) --group triton -e '.[client]'
	@touch $@

# The generator is pinned in the dependency group `proto` and lives apart: it brings an older protobuf than the rest.
$(PROTO_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PROTO_VENV)
	$(PROTO_VENV)/bin/python $(PIP_INSTALL) "pip>=25.1"
	$(PROTO_VENV)/bin/python $(PIP_INSTALL) --group proto
	@touch $@
