# make figures               the figures of the embedded model, small setting (PRESET=quick)
# make figures PRESET=lab    the same in full, as committed in figures/lab
# make test, make lint       what .ci/run runs
# make test-browser          the explorer in a real JupyterLab and Chromium (make test: where one is)
# make lab-up                JupyterLab, opened on the explorer
# make book                  course, notebooks and guides as a site in runs/book
# make lab                   train the embedded model again from its corpus
# make bench                 what localization costs, beside the released algorithm
# make clean                 remove what runs left behind; make distclean: .venv too
#
# Each makes .venv first, from pyproject.toml under constraints.txt, and again when one of them
# changed. Optional: ONLY="F2a F4a" draws these figures, ARGS is passed on to the command,
# PYTHON names an interpreter, PIP_FLAGS is passed on to pip (README: a smaller torch).

PRESET ?= quick
ONLY ?=
ARGS ?=
PIP_FLAGS ?=
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: figures test test-browser chromium lab-up book lint lab bench clean distclean
.DELETE_ON_ERROR:

figures: $(STAMP)
	@$(BIN)/nemo-kit figures --preset $(PRESET) $(foreach f,$(ONLY),--only $(f)) $(ARGS)

test: $(STAMP)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-browser: $(STAMP) chromium
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest tests/browser $(ARGS)

chromium:
	@$(find_chromium)

lab-up: $(STAMP)
	$(BIN)/jupyter lab notebooks/explorer.ipynb $(ARGS)

book: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs . runs/book
	@echo "open runs/book/docs/index.html"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb notebooks/course/*.ipynb

lab: $(STAMP)
	$(BIN)/python -m training.build $(ARGS)

bench: $(STAMP)
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf runs figures/*-quick figures/*/executed .pytest_cache .ruff_cache .hypothesis
	find nemo_kit benchmarks notebooks tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# --no-compile: Python compiles what is imported; compiling everything doubles the time.
$(STAMP): pyproject.toml constraints.txt
	@$(find_python); \
	if ! $(BIN)/python -c '' 2>/dev/null; then \
	  echo "making $(VENV) with $$($$python --version)"; \
	  $$python -m venv --clear $(VENV) || { \
	    echo "could not make $(VENV): on Debian and Ubuntu, apt install python3-venv" >&2; \
	    rm -rf $(VENV); exit 1; }; \
	fi
	@echo "installing nemo_kit and what it needs (the first time takes some minutes)"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-compile $(PIP_FLAGS) \
	  -c constraints.txt -e '.[dev]'
	@touch $@

# The first Python that runs and is new enough; a shim that cannot start counts as absent.
define find_python
python=; \
for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3 python; do \
  if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
    python=$$candidate; break; \
  fi; \
done; \
if [ -z "$$python" ]; then \
  echo "nemo_kit needs Python 3.11 or newer; found: $$(python3 --version 2>&1 || echo none)." \
    "Name another with make PYTHON=/path/to/python3.11" >&2; exit 1; \
fi
endef

# Chromium is Debian's package; the flags it runs with are in tests/browser/servers.py.
define find_chromium
found() { [ -n "$$CHROMIUM" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null; }; \
if ! found && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
  echo "installing Chromium"; \
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
    --no-install-recommends chromium; } >/dev/null || true; \
fi; \
found || { \
  echo "no Chromium here, and it could not be installed (that needs root, apt and a network):" \
    "apt install chromium, or name one in CHROMIUM. Without it the browser tests are skipped" >&2; \
  exit 1; }
endef
