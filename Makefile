# make demo     see it work: builds what is missing into ~/.cache/safety-directions, then runs the demo
# make test     lint, types, and every test, against a real ComfyUI
# make test-cuda     every family of text encoders on a graphics card; says so where there is none
# make clean    remove what these leave in this folder (the cache stays; it can be deleted at any time)
#
# PYTHON=python3.12         the Python to build with, 3.10 or newer
# TEST_PROCESSES=1         how many test files run side by side; 2 if not said
# COMFYUI_PATH, COMFYUI_PYTHON, SAFETY_DIRECTIONS_CACHE     see harness/environment.py

PYTHON ?= python3
TEST_PROCESSES ?= 2
MYPY_CONFIG := $(shell grep -qs '^\[tool.mypy\]' pyproject.toml || echo --ignore-missing-imports)

.PHONY: demo test test-cuda clean

# Threads that spin while they wait take ten times as long where another program has one of the cores.
demo: export OMP_WAIT_POLICY ?= PASSIVE
demo:
	@python="$$($(PYTHON) -m harness.environment demo)" && "$$python" -m harness.demo

# The folder itself is a package once ComfyUI has loaded it, and its name need not be one that Python can import:
# --explicit-package-bases keeps mypy from deriving module names from it.
# One thread each: the tests start several ComfyUIs.
test: export OMP_NUM_THREADS ?= 1
test:
	@set -e; python="$$($(PYTHON) -m harness.environment test)"; \
	"$$python" -m ruff check .; \
	"$$python" -m mypy $(MYPY_CONFIG) --explicit-package-bases $(wildcard directions nodes); \
	"$$python" -m pytest tests -q -rs --ignore=tests/comfyui/test_cuda.py --numprocesses $(TEST_PROCESSES) --dist loadfile

test-cuda:
	@python="$$($(PYTHON) -m harness.environment test)" && "$$python" -m pytest tests/comfyui/test_cuda.py -q -rs

clean:
	rm -rf demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name .git -prune -o -name __pycache__ -type d -exec rm -rf {} +
