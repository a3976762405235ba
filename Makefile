# make demo   phantom, training and evaluation on this machine's CPU, with Detectron2 if it can be had and otherwise with
#             torchvision; ENGINE=detectron2 or ENGINE=torchvision asks for one
# make test   the fast tests, a process for each core; make test-slow has the others, trainings and benchmarks, and CI runs both
# make lint   ruff
#
# Each makes what it needs in .venv. PYTHON=/path/to/python uses an environment that has everything instead.
# DETECTRON2=... installs Detectron2 from there: a wheel, a checkout or a URL.

VENV ?= .venv
DETECTRON2 ?=
ENGINE ?=
export DETECTRON2 ENGINE

ifeq ($(origin PYTHON), undefined)
PYTHON := $(VENV)/bin/python
INSTALL := bash tools/install.sh $(VENV)
else
INSTALL := true
ifneq ($(DETECTRON2),)
$(error PYTHON= names an environment that is used as it is; DETECTRON2= would change nothing in it)
endif
endif

define NO_DETECTRON2
Detectron2 is not installed for $(PYTHON), and make found neither a wheel of it in pip's find-links nor could it reach
its repository. Run one of
    make demo DETECTRON2=/path/to/detectron2.whl
    make demo DETECTRON2=/path/to/a/checkout/of/detectron2
    make demo PYTHON=/path/to/a/python/that/has/it
    make demo ENGINE=torchvision
endef
export NO_DETECTRON2
FIND_DETECTRON2 := import sys; from a3d_det2.optional import detectron2_problem as p; sys.exit(p() is not None)

.PHONY: demo test test-slow lint install clean

demo: install
ifeq ($(ENGINE),detectron2)
	@$(PYTHON) -c "$(FIND_DETECTRON2)" || { echo "$$NO_DETECTRON2" >&2; exit 1; }
endif
	@$(PYTHON) tools/demo.py $(if $(ENGINE),--engine $(ENGINE))

# Without Detectron2 the tests that need it are left out, and pytest's summary says how many.
test: install
	$(PYTHON) -m pytest -m "not slow" --numprocesses auto --maxprocesses 8

test-slow: install
	$(PYTHON) -m pytest -m slow

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

install:
	@$(INSTALL) || { status=$$?; [ $$status = 3 ]; }

clean:
	rm -rf $(VENV) demo_output output
