# make demo   phantom, training and evaluation on this machine's CPU
# make test   all tests
# make lint   ruff
#
# Each makes what it needs in .venv. PYTHON=/path/to/python uses an environment that has everything instead.
# DETECTRON2=... installs Detectron2 from there: a wheel, a checkout or a URL.

VENV ?= .venv
DETECTRON2 ?=
export DETECTRON2

ifeq ($(origin PYTHON), undefined)
PYTHON := $(VENV)/bin/python
INSTALL := bash tools/install.sh $(VENV)
else
INSTALL := true
endif

define NO_DETECTRON2
Detectron2 is not installed and could be had neither from a wheel in pip's find-links nor from its repository.
Run one of
    make demo DETECTRON2=/path/to/detectron2.whl
    make demo DETECTRON2=/path/to/a/checkout/of/detectron2
    make demo PYTHON=/path/to/a/python/that/has/it
endef
export NO_DETECTRON2

.PHONY: demo test lint install clean

demo: install
	@$(PYTHON) -c "import detectron2" 2> /dev/null || { echo "$$NO_DETECTRON2" >&2; exit 1; }
	@$(PYTHON) tools/demo.py

# Without Detectron2 the tests that need it are left out, and pytest's summary says how many.
test: install
	$(PYTHON) -m pytest

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

install:
	@$(INSTALL) || { status=$$?; [ $$status = 3 ]; }

clean:
	rm -rf .venv demo_output output
