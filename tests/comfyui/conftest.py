"""One real ComfyUI for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import directions
from harness.server import PACK, ROOT, Server
from tests.few import few
from tests.pictures import colour_judge


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running ComfyUI with this pack in it. Where there is none, tests fail with the command that gets one."""
    with Server() as running:
        yield running


@pytest.fixture(scope="session")
def tiny() -> Iterator[Server]:
    """Another, with a tiny image model of random weights, a direction of few anchors and a classifier to judge by."""
    here = ROOT / "tests" / "comfyui"
    packs = {PACK: ROOT, "tiny_image_model": here / "tiny_image_model", "watch": here / "watch"}
    with Server(packs=packs, variables={"OMP_NUM_THREADS": "1"}) as running:
        folder = running.base / "models" / "safety_directions"
        folder.mkdir(exist_ok=True)
        few(directions.load("smollm2-135m-instruct")).save(folder / "few.safetensors")
        colour_judge(folder / "colour.onnx")
        yield running
