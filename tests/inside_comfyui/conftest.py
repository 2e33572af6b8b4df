"""These run in a process of their own (tests/test_encoders.py starts it): ComfyUI reads sys.argv when it is imported."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _import_pack():
    from harness.environment import find

    environment = find("test")
    sys.path[:0] = [os.fspath(environment.comfyui), *map(os.fspath, environment.pythonpath)]
    sys.argv = ["test", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "pack", ROOT / "__init__.py", submodule_search_locations=[os.fspath(ROOT)]
    )
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module("pack.nodes.encoders")


_encoders = _import_pack()


@pytest.fixture(scope="session")
def encoders():
    """The pack's `nodes.encoders`, in this process."""
    return _encoders


@pytest.fixture(scope="session")
def library():
    """The pack's `directions`, in this process."""
    return importlib.import_module("pack.directions")


@pytest.fixture(scope="session")
def direction(library):
    return library.load("smollm2-135m-instruct")


@pytest.fixture(scope="session")
def minilm(encoders):
    return encoders.load_minilm()
