# make run    set up, then the main job on the embedded model
# make test   set up, then every check and every test
# make fuzz   everything that reads model output, on many more examples than make test
# make endurance [SEED=N]   500 problems under faults, half an hour
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXAMPLES ?= 300
WORKERS ?= 2

.PHONY: run test fuzz endurance check setup lock notebook clean

run: $(READY)
	$(BIN)/aimo-solver evaluate data/warmup.csv --out runs/warmup --overwrite

test: check
	$(BIN)/pytest -q -n $(WORKERS) --dist loadgroup

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

notebook: $(READY)
	$(BIN)/python scripts/build_notebook.py

# Writes down what is installed now, after a change of versions was tried by hand.
lock: $(READY)
	(sed -n '/^#/p' requirements.lock; $(BIN)/pip freeze --exclude-editable --all \
	  | grep -viE '^(pip|torch|torchvision|torchaudio|torchcodec|uv)(=| )' | sort -f) > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis
