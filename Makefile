# make demo, make test: both set up all they need in .venv, or use PYTHON=... as it is.
.PHONY: demo test test-peers lint help
SNAPSHOT_DIR ?= snapshots/demo

help:
	@echo "make demo   adapt a small network on drawn streets and score it (1 to 3 minutes)"
	@echo "make test   run the tests, two at a time on two cores (about 11 minutes)"
	@echo "make test-peers  compare with torchvision, timm, smp and transformers (3 minutes)"
	@echo "make lint   ruff, check and format"
	@echo "PYTHON=python3 uses that interpreter's packages instead of a new .venv"

ifdef PYTHON
RUNTIME :=
DEV :=
else
PYTHON := .venv/bin/python
RUNTIME := .venv/runtime.done
DEV := .venv/dev.done
endif

.venv/bin/python:
	python3 -m venv .venv

.venv/runtime.done: requirements.txt | .venv/bin/python
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/dev.done: requirements-dev.txt .venv/runtime.done
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(RUNTIME)
	$(PYTHON) train_da.py --snapshot-dir $(SNAPSHOT_DIR)

test: $(DEV)
	$(PYTHON) -m pytest -n auto --dist loadgroup

# in a .venv-peers that sees the packages of PYTHON; torchvision without its dependencies, or it
# brings another torch
PEERS := torchvision==0.28.0 timm==1.0.31 segmentation-models-pytorch==0.6.0 transformers==5.24.0
WHERE := import sysconfig; print(sysconfig.get_path("purelib"))
PEERS_INSTALL := .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check
.venv-peers/done: requirements-peers.txt $(DEV)
	$(PYTHON) -m venv .venv-peers
	$(PYTHON) -c '$(WHERE)' > "$$(.venv-peers/bin/python -c '$(WHERE)')/pythons.pth"
	$(PEERS_INSTALL) -r requirements-peers.txt
	$(PEERS_INSTALL) --no-deps $(PEERS)
	@touch $@

test-peers: .venv-peers/done
	.venv-peers/bin/python -m pytest tests/models/test_peers.py tests/models/test_peer_networks.py

lint: $(DEV)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
