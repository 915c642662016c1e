# make demo    the whole line on a CPU: dataset, pretraining, detector, segmenter, pictures
# make test    the tests
# make lint    style
# make setup   the environment alone (the others make it by themselves)
VENV ?= .venv
PYTEST_ARGS ?=
export PYTHONUNBUFFERED = 1

.PHONY: demo test lint format setup clean

demo: setup
	$(VENV)/bin/python tools/demo.py

# Two processes with one thread each are faster here than one process with two threads.
test: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup:
	@tools/setup.sh $(VENV)

clean:
	rm -rf $(VENV) work_dirs
