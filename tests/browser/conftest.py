"""Chromium on the real page of a real ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import directions
from harness.page import CHROMIUM, FLAGS, Page
from harness.server import PACK, ROOT, Server
from harness.templates import pretend_weights
from tests.few import few


@pytest.fixture(scope="session")
def studio() -> Iterator[Server]:
    """A ComfyUI with the pack, the files that the templates name (empty), and a direction of few anchors."""
    with Server(packs={PACK: ROOT}, variables={"OMP_NUM_THREADS": "1"}) as running:
        models = running.base / "models"
        pretend_weights(models)
        folder = models / "safety_directions"
        folder.mkdir(exist_ok=True)
        cut = few(directions.load("smollm2-135m-instruct"), categories=("sexual", "violence"))
        replace(cut, licence="CC0-1.0").save(folder / "two-categories.safetensors")
        yield running


@pytest.fixture(scope="session")
def chromium():
    if not CHROMIUM:
        pytest.skip("no Chromium: apt-get install chromium (or set CHROMIUM to its path)")
    api = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: python3 -m harness.environment test (or pip install playwright)"
    )
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page(chromium, studio) -> Page:
    """One tab for all tests: the page takes long to load."""
    return Page(chromium.new_page(viewport={"width": 1680, "height": 1020}), studio.url)
