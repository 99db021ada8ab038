# make demo | test | app | lint | format | clean. Everything is installed into .venv on first use;
# nothing else on the machine is touched. PYTHON=... chooses the interpreter that .venv is made of.

VENV := .venv
BIN := $(VENV)/bin
PHOTO := cest/assets/astronaut.jpg
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$python; break; }; done)

.PHONY: demo test app lint format clean

demo: $(VENV)/.run
	$(BIN)/cest reconstruct $(PHOTO) -o out
	@echo "What CEST and IEST made of $(PHOTO):"
	@find out -type f | sort | sed 's/^/  /'

test: $(VENV)/.test
	$(BIN)/python -m pytest -m "not slow"

app: $(VENV)/.run
	$(BIN)/python app.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) out build *.egg-info .pytest_cache .ruff_cache
	find cest train tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp a purpose: installed again only when what is required has changed. One resolution of
# all requirements, so that torch's pin holds whatever else asks for torch.
$(VENV)/.run: EXTRAS :=
$(VENV)/.test: EXTRAS := [test]
$(VENV)/.dev: EXTRAS := [dev]
$(VENV)/.run $(VENV)/.test $(VENV)/.dev: pyproject.toml requirements.txt | $(BIN)/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.$(EXTRAS)'
	@touch $@

$(BIN)/pip:
	@test -n "$(PYTHON)" || { \
	echo "CEST needs Python 3.11 or newer, and none was found; install one, or name it:"; \
	echo "  make PYTHON=/path/to/python3.12 demo"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	echo "$(PYTHON) cannot make a virtual environment (on Debian: apt-get install python3-venv)."; \
	exit 1; }
