# make install   an environment in .venv with every extra
# make test      format, lint, types, tests with warnings as errors
# make test-all  what CI runs: these, and the contracts of families whose description another family has too
# make check     the same without the slow tests
# make demo      the main job on the model that the package carries
# make docs      the pages as a site in build/site, every link checked
# make nightly   what takes a quarter of an hour: llama.cpp built, and opening what moeits writes (needs a C++ compiler)
# make bench     what is fast and by how much, against programs written by someone else

PYTHON ?= python3
BIN := .venv/bin
# A worker per core, each with one thread per BLAS call; tests of one file stay together until a worker runs dry.
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: install lint test test-all check demo docs nightly bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The demo needs no tools for development, so on a fresh machine it installs less.
.venv/demo-installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -e .venv/installed || $(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	test -e .venv/installed || $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[load,heal,eval,report]'
	touch $@

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	sh scripts/install-chromium.sh
	$(TEST_ENV) $(PYTEST) -m "not every_family"

test-all: test
	$(TEST_ENV) $(PYTEST) -m every_family

check: lint
	$(TEST_ENV) $(PYTEST) -m "not slow and not every_family"

demo: .venv/demo-installed
	$(BIN)/python -m moeits.demo

docs: install
	$(BIN)/python scripts/site_pages.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# llama.cpp comes as the source package of its Python binding, which brings its converter too.
LLAMA := build/llama
LLAMA_SOURCE := $(LLAMA)/llama_cpp_python-0.3.36

$(LLAMA)/installed:
	mkdir -p $(LLAMA)
	$(BIN)/pip download --quiet --no-deps --no-binary llama-cpp-python --dest $(LLAMA) llama-cpp-python==0.3.36
	tar -xzf $(LLAMA_SOURCE).tar.gz -C $(LLAMA)
	CMAKE_ARGS="-DLLAVA_BUILD=OFF" $(BIN)/pip install --quiet --no-deps --target $(LLAMA)/site $(LLAMA_SOURCE).tar.gz
	$(BIN)/pip install --quiet --no-deps --target $(LLAMA)/site gguf==0.19.0 sentencepiece diskcache
	touch $@

nightly: install $(LLAMA)/installed
	rm -rf $(LLAMA)/models
	$(BIN)/python scripts/clients/models.py $(LLAMA)/models
	PYTHONPATH=$(LLAMA)/site LLAMA_CPP=$(LLAMA_SOURCE)/vendor/llama.cpp $(BIN)/python scripts/clients gguf $(LLAMA)/models
	PYTHONPATH=$(LLAMA)/site LLAMA_CPP=$(LLAMA_SOURCE)/vendor/llama.cpp $(BIN)/python scripts/clients llama.cpp $(LLAMA)/models
	$(BIN)/python scripts/clients_page.py > build/clients.md && mv build/clients.md docs/clients.md

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build demo-output artefacts .mypy_cache .pytest_cache .ruff_cache
