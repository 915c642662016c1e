# make demo    the whole line on a CPU: dataset, pretraining, detector, segmenter, pictures
# make test    the tests
# make lint    style
# make test-slow          the rest of the tests' matrices
# make torture KILLS=200   trainings killed at random moments, resumed and compared
# make test-multihost      two network namespaces, a link that is cut; needs root
# make test-slurm          a real Slurm on this machine; needs root and: apt install slurm-wlm munge
# make test-matrix   Python 3.11 to 3.13, both OpenMMLab distributions, oldest and newest torch
# make test-operators   our mmcv operators against the compiled ones; compiles them first (15 minutes)
# make setup   the environment alone (the others make it by themselves)
VENV ?= .venv
PYTEST_ARGS ?=
export PYTHONUNBUFFERED = 1

.PHONY: demo test test-slow torture test-multihost test-slurm test-matrix test-operators lint format setup clean

demo: setup
	$(VENV)/bin/convnext demo

# Two processes with one thread each are faster here than one process with two threads.
test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

KILLS ?= 200
torture: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tools.dev.torture --kills $(KILLS)

test-slow: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadgroup -m slow

test-multihost: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m multihost tests/test_cluster.py

test-slurm: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m slurm tests/test_cluster.py

MATRIX ?= work_dirs/matrix
test-matrix:
	@tools/dev/test_matrix.sh $(MATRIX) $(ROWS)

# FORCE_CUDA=1 make test-operators DEVICE=cuda   on a machine with nvcc and a GPU
OPERATORS ?= .operators
DEVICE ?= cpu
ROUNDS ?= 200
test-operators: setup
	PYTHON=$(VENV)/bin/python tools/dev/compile_mmcv.sh $(OPERATORS)
	$(VENV)/bin/python tools/dev/compare_mmcv_ops.py $(OPERATORS)/mmcv/_ext*.so --rounds $(ROUNDS) --device $(DEVICE)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup:
	@tools/setup.sh $(VENV)

clean:
	rm -rf $(VENV) $(OPERATORS) work_dirs
