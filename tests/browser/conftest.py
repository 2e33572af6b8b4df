"""Chromium on the real page of a real ComfyUI."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest

import directions
from harness.server import PACK, ROOT, Server
from harness.templates import MODELS
from tests.few import few

CHROMIUM = (
    os.environ.get("CHROMIUM")
    or shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: A person who has been here before: no tour of the templates over the graph.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}


@pytest.fixture(scope="session")
def studio() -> Iterator[Server]:
    """A ComfyUI with the pack, the files that the templates name (empty), and a direction of few anchors."""
    with Server(packs={PACK: ROOT}, variables={"OMP_NUM_THREADS": "1"}) as running:
        models = running.base / "models"
        for file, (_, folder) in MODELS.items():
            (models / folder).mkdir(exist_ok=True)
            (models / folder / file).touch()
        (models / "LLM").mkdir(exist_ok=True)
        (models / "LLM" / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
        folder = models / "safety_directions"
        folder.mkdir(exist_ok=True)
        cut = few(directions.load("smollm2-135m-instruct"), categories=("sexual", "violence"))
        replace(cut, licence="CC0-1.0").save(folder / "two-categories.safetensors")
        yield running


class Page:
    """A tab with a ComfyUI in it; what it logs and asks for is kept."""

    def __init__(self, tab, url: str) -> None:
        self.tab = tab
        self.url = url
        self.messages: list[tuple[str, str, str]] = []
        self.requests: list[str] = []
        tab.on(
            "console",
            lambda message: self.messages.append((message.type, message.text, message.location.get("url", ""))),
        )
        tab.on("pageerror", lambda error: self.messages.append(("pageerror", str(error), error.stack or "")))
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.set_default_timeout(60_000)
        tab.request.post(f"{url}/settings", data=SETTINGS)
        self.load()

    def load(self) -> None:
        """Open the page, or open it again."""
        self.tab.goto(self.url)
        self.tab.wait_for_function(
            "() => window.app?.extensionManager?.workflow?.activeWorkflow && !document.querySelector('#splash-loader')"
        )

    def run(self, script: str, *argument):
        """JavaScript in the page."""
        return self.tab.evaluate(script, *argument)

    def wait(self, script: str, *argument) -> None:
        """Until the script is true."""
        self.tab.wait_for_function(script, arg=argument[0] if argument else None)

    def open(self, name: str, direction: str | None = None) -> None:
        """A template, as its browser opens it; with a direction chosen in its Load node."""
        workflow = json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        for node in workflow["nodes"]:
            if direction and node["type"] == "SafetyDirectionLoad":
                node["widgets_values"] = [direction]
            if direction and node["type"] == "SafetyDirectionAlign":
                node["widgets_values"] = ["ridge"]
        self.run("(workflow) => app.loadGraphData(workflow, true, true, null)", workflow)
        self.wait("(count) => app.graph.nodes.length === count", len(workflow["nodes"]))

    def queue(self) -> None:
        """Run the graph and wait for its end."""
        self.run("() => app.queuePrompt(0, 1)")
        self.wait(
            "async () => { const q = await (await fetch('/queue')).json(); return !q.queue_running.length && "
            "!q.queue_pending.length; }"
        )

    def look_at(self, *ids: int) -> None:
        """Bring these nodes, or all, into view."""
        self.run(
            """(ids) => {
              const nodes = app.graph.nodes.filter((node) => !ids.length || ids.includes(node.id));
              const [x0, y0] = [0, 1].map((i) => Math.min(...nodes.map((node) => node.pos[i])));
              const [x1, y1] = [0, 1].map((i) => Math.max(...nodes.map((node) => node.pos[i] + node.size[i])));
              const scale = Math.min(1500 / (x1 - x0), 860 / (y1 - y0 + 60), 1.4);
              app.canvas.ds.scale = scale;
              app.canvas.ds.offset = [-x0 + 90 / scale, -y0 + 40 + 80 / scale];
              app.canvas.setDirty(true, true);
            }""",
            list(ids),
        )
        self.tab.wait_for_timeout(500)


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
