# make run    install, then solve data/warmup.csv with the embedded model
# make fast   ruff, mypy, and the tests that are quick and need neither vLLM nor kernels; the loop while you edit
# make test   install, then all checks and tests, some of them once more on the versions of Kaggle's image
# make fuzz   the readers of model output, on many more examples than in make test
# make endurance [SEED=N]   500 problems under faults, half an hour
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
IMAGE := .venv-image
EXAMPLES ?= 300
# Three workers keep two cores busy, since tests often wait.
WORKERS ?= 3

# pytest keeps its rewritten modules, which otherwise cost each worker seconds in each run.
export PYTHONDONTWRITEBYTECODE :=

PYTEST := $(BIN)/pytest -q -n $(WORKERS)

.PHONY: run fast test fuzz endurance check setup lock notebook clean

run: $(READY)
	$(BIN)/aimo-solver evaluate data/warmup.csv --out runs/warmup --overwrite

fast: notebook
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) --hypothesis-profile=quick -m 'not vllm and not kernels and not slow'

test: check $(IMAGE)/.ready
	$(PYTEST)

fuzz: $(READY)
	AIMO_FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/pytest -q tests/chat/test_fuzz.py

endurance: $(READY)
	$(BIN)/python scripts/endurance.py $(if $(SEED),--seed $(SEED))

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/build_notebook.py --check

setup: $(READY)

$(READY): requirements.lock pyproject.toml scripts/install.sh
	scripts/install.sh $(VENV)
	touch $(READY)

# Not made where there is no Python 3.12.
$(IMAGE)/.ready: requirements-image.txt scripts/install_image.sh
	scripts/install_image.sh $(IMAGE)

notebook: $(READY)
	$(BIN)/python scripts/build_notebook.py

# Pins the versions that are installed now.
lock: $(READY)
	(sed -n '/^#/p' requirements.lock; $(BIN)/pip freeze --exclude-editable --all \
	  | grep -viE '^(pip|torch|torchvision|torchaudio|torchcodec|uv)(=| )' | sort -f) > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) $(IMAGE) runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
