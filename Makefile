# Everything a developer or an operator types.  Needs Python >= 3.11 and, once, the network for PyPI.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests
SOURCES := pyproject.toml setup.py $(wildcard kdns/*.pyx kdns/*.pxd kdns/native/*)

.PHONY: run test check tests test-kube test-coredns chaos bench fuzz clean

run: $(VENV)/run  ## serve the sample cluster on 127.0.0.1:1053
	@printf '%s\n' 'kdns serves the sample cluster in examples/ on 127.0.0.1:1053 (Ctrl-C stops it).  Try:' \
	    '  dig @127.0.0.1 -p 1053 headless-service.default.svc.cluster.local' \
	    '  dig @127.0.0.1 -p 1053 _postgres._tcp.postgres.default.svc.cluster.local SRV' \
	    '  dig @127.0.0.1 -p 1053 -x 10.96.0.10'
	@exec $(BIN)/kdns -conf Corefile.example -dns.port 1053

test: check tests  ## all checks and tests

check: $(VENV)/dev  ## lint, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: $(VENV)/dev
	$(BIN)/python -m pytest -n auto --dist worksteal $(TESTS)

test-kube: $(VENV)/dev  ## against a real control plane; needs KUBEBUILDER_ASSETS
	@test -n "$$KUBEBUILDER_ASSETS" || { echo 'KUBEBUILDER_ASSETS names no directory with etcd and kube-apiserver'; exit 1; }
	$(BIN)/python -m pytest tests/kube

test-coredns: $(VENV)/dev  ## against the real CoreDNS; skipped without coredns on PATH
	KDNS_PARITY_QUESTIONS=100000 $(BIN)/python -m pytest tests/coredns

chaos: $(VENV)/dev  ## faults of the control plane and of processes, a quarter of an hour; TESTS="K2 L1", SEED=, SCALE=, OUT=
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) $(if $(SCALE),--scale $(SCALE)) $(if $(OUT),--out $(OUT)) \
	    $(filter-out tests,$(TESTS))

bench: $(VENV)/dev  ## CPU per query beside every peer on PATH
	$(BIN)/python -m bench

fuzz: $(VENV)/dev  ## a million mutated packets
	KDNS_FUZZ_PACKETS=1000000 $(BIN)/python -m pytest tests/fuzz

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

$(VENV)/python: 
	$(PYTHON) -c 'import sys; sys.exit("kdns needs Python 3.11 or newer: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run: $(VENV)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev: $(VENV)/python $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,kubeconfig]'
	@touch $@
