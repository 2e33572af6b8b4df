"""Chromium on the real page of a real ComfyUI: for the tests of the page, and for the templates' pictures."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

from .server import ROOT
from .templates import FOLDER

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

#: Tries points of every node, a little inside of it, against the curves that the page drew last.
HIDDEN_WIRES = """() => {
  const drawing = app.canvas.bgcanvas.getContext("2d");
  drawing.save();
  drawing.setTransform(1, 0, 0, 1, 0, 0);
  drawing.lineWidth = 3;
  const found = [];
  const curves = [...app.graph.links.values()].map((link) => [link, [link.path, ...app.graph.reroutes.values()
    .filter((one) => one.linkIds.has(link.id)).map((one) => one.path)].filter(Boolean)]);
  for (const [link, paths] of curves) for (const node of app.graph.nodes) {
    if (node.id === link.origin_id || node.id === link.target_id) continue;
    const [x, y, width, height] = node.boundingRect;
    let hidden = false;
    for (let i = x + 6; i < x + width - 6 && !hidden; i += 3) for (let j = y + 6; j < y + height - 6 && !hidden; j += 3)
      hidden = paths.some((path) => drawing.isPointInStroke(path, i, j));
    if (hidden) found.push([link.origin_id, link.target_id, node.id].map((id) => app.graph.getNodeById(id).title));
  }
  drawing.restore();
  return found;
}"""


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
        workflow = json.loads((ROOT / FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        for node in workflow["nodes"]:
            if direction and node["type"] in ("SafetyDirectionLoad", "SafetyDirection"):
                node["widgets_values"][0] = direction
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

    def hidden_wires(self) -> list[list[Any]]:
        """[source, target, node before it] for every wire that some third node stands before."""
        return self.run(HIDDEN_WIRES)

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
