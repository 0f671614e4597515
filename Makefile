# Two commands do everything on a machine with Python 3.11+ and make:
#   make demo      build the data, train 5 epochs on the CPU, register, evaluate; prints where the
#                  pictures are
#   make test      run the tests
# For developers:
#   make check     lint, types and the fast tests, in under a minute
#   make lint      lint and types
#   make figures   sizes, layers and docstrings of the code
# Studies:
#   make compare   all methods under every stress on the real and on generated pairs, with a report
#                  (half an hour)
#   make weights   train the weights in save/pretrained (hours; docs/model_card.md)
PYTHON ?= python3
BIN := .venv/bin
DATA ?= data/generated
RUN := save/cffa/demo
REAL := ../shared/data/real_pairs
SOURCES := ../shared/data
RELEASE := save/cffa_cfoct_octfa_cfocta/release
OLD_PYTHON := Python 3.11 or newer is needed, found

.PHONY: demo test check lint figures setup setup-dev browser weights compare clean

setup: .venv/installed

setup-dev: .venv/installed-dev

.venv/python:
	$(PYTHON) -c "import sys; sys.exit('$(OLD_PYTHON) ' + sys.version.split()[0] if sys.version_info < (3, 11) else 0)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/python requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

test: setup-dev
	$(BIN)/python -m pytest

check: lint
	$(BIN)/python -m pytest -m "not slow and not browser"

lint: setup-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

figures: setup-dev
	$(BIN)/python tests/code_figures.py

# The reports are tested in Chromium; without it those tests are skipped with a reason.
browser:
	@if which chromium chromium-browser google-chrome 2>/dev/null | grep -q .; then true; \
	elif [ "$$(id -u)" = 0 ] && which apt-get >/dev/null 2>&1; then \
	  (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null) \
	  || echo "Chromium could not be installed: the browser tests will be skipped"; \
	else echo "no Chromium, and no permission to install it: the browser tests will be skipped"; fi

demo: setup
	$(BIN)/python -m examples.demo --data $(DATA) --run $(RUN) --real $(REAL)

# Real pictures are used if present; the red-free frames among the angiograms are left out, because
# their vessels are dark.
weights: setup
	$(BIN)/python -m synthesis --out data/release --eyes 170 --seed 1 --processes 2 $(if $(wildcard $(SOURCES)), \
	  --from_cf $(SOURCES)/cf_vessel --from_octa $(SOURCES)/octa_rossa \
	  --from_fa $(filter-out %non_ffa,$(wildcard $(SOURCES)/fa_unpaired/*)))
	$(BIN)/python train_multimodal_e2e.py --config configs/superretina_release.yaml --data data/release \
	  --mode cffa cfoct octfa cfocta --name release --precision bf16
	$(BIN)/python train_multimodal_e2e.py --config configs/superretina_release_second.yaml --data data/release \
	  --mode cffa cfoct octfa cfocta --name release_second --precision bf16 --pretrained $(RELEASE)/best.pth
	$(BIN)/python -m training.release $(RELEASE)_second/latest.pth save/pretrained/superretina_multimodal.pth --max_mb 8 \
	  --match configs/superretina_release.yaml
	$(BIN)/python train_loftr_v3.py --name release --precision bf16
	$(BIN)/python -m training.release save/cffa/release/latest.pth save/pretrained/loftr_v3_lite.pth --max_mb 16

compare: setup
	$(BIN)/python -m synthesis --out data/comparison --eyes 6 --seed 7
	$(BIN)/python evaluate.py $(if $(wildcard $(REAL)),--real $(wildcard $(REAL)/*)) --generated data/comparison --subset all \
	  --generated_mode cffa cfoct --draws 1 --compare superretina sift mi identity oracle loftr xfeat aliked-lightglue \
	  --stress all --wrong_pairs 20 --out save/comparison

clean:
	rm -rf .venv $(DATA) $(RUN) data/comparison save/comparison
