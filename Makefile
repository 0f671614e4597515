# Two commands do everything on a machine with Python 3.11+ and make:
#   make demo    build the data, train 5 epochs on the CPU, register, evaluate; prints where the pictures are
#   make test    run the tests
PYTHON ?= python3
BIN := .venv/bin
DATA ?= data/generated
RUN := save/cffa/demo
REAL := ../shared/data/real_pairs

.PHONY: demo test lint setup clean

setup: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, found ' + sys.version.split()[0] if sys.version_info < (3, 11) else 0)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .

demo: setup
	$(BIN)/python -m utils.demo --data $(DATA) --run $(RUN) --real $(REAL)

clean:
	rm -rf .venv $(DATA) $(RUN)
