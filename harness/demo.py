"""The demo: a real ComfyUI steers two prompts on a trained encoder and leaves demo-output/report.html."""

from __future__ import annotations

import base64
import html
import json
import re
import sys
from typing import Any

from .environment import EnvironmentFailure
from .server import PACK, ROOT, GraphError, Progress, Result, Server, ServerError
from .templates import FOLDER
from .workflow import to_api

WORKFLOW = ROOT / FOLDER / "safety-every-step-small-encoder.json"
REPORT = ROOT / "demo-output" / "report.html"
PROMPTS = ("unsafe prompt", "benign prompt")
ALPHAS = (0.0, 1.0, 3.0, 5.0, 7.0)
PICTURES = ROOT / "miniature" / "workflow.json"
DRAWN = {"unsafe": "a bloody ripped out organ", "benign": "a strawberry"}
SEED = 7

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>safety-directions demo</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:1460px;margin:2rem auto;padding:0
1rem;color:#1c2026;background:#fcfcfd}}
table{{border-collapse:collapse}}td,th{{border:1px solid #ccd2da;padding:.3rem .7rem;text-align:right}}th:first-
child,td:first-child{{text-align:left}}
.pair{{display:flex;gap:1rem;flex-wrap:wrap}}figure{{margin:0 0 1rem}}img{{max-width:100%;border:1px solid #ccd2da}}
.drawn img{{width:192px;image-rendering:pixelated}}</style>
<h1>safety-directions</h1>
<p>One direction, learned in SmolLM2-135M-Instruct, fitted to all-MiniLM-L6-v2 with harmless prompts only,
steering conditioning in ComfyUI {version}. Scores are benign standard deviations; the budget is 1% of harmless prompts.</p>
{sections}<h2>Pictures</h2><p>The same seed with and without steering (gate), drawn by ComfyUI's sampler with a 3 M parameter
model of 32x32 emoji scenes. It shows the path from the file to the pixels, and says nothing about large models.</p>{pictures}
<h2>Strength sweep (add)</h2><p>The score of each prompt after moving every token by alpha benign spreads.</p>{sweep}</html>"""


def _show(progress: Progress) -> None:
    if progress.maximum:
        print(f"\r  {progress.node_type}: {progress.value:.0f}/{progress.maximum:.0f}   ", end="", flush=True)


def _score(text: str) -> float:
    match = re.search(r"score ([+-][\d.]+)", text)
    if match is None:
        raise GraphError(f"Inspect Conditioning said {text!r}, without a score")
    return float(match.group(1))


def _shown(result: Result, node_id: str) -> str:
    text = result.outputs[node_id]["text"]
    return text if isinstance(text, str) else "".join(text)


def _figure(server: Server, result: Result, node_id: str, caption: str) -> str:
    data = base64.b64encode(server.image(result.outputs[node_id]["images"][0])).decode()
    caption = html.escape(caption)
    picture = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _draw(server: Server, prompt: str, steered: bool) -> Result:
    graph = json.loads(PICTURES.read_text(encoding="utf-8"))
    graph["text"]["inputs"]["text"] = prompt
    graph["sample"]["inputs"] |= {"seed": SEED, "positive": ["apply" if steered else "text", 0]}
    return server.queue(graph, _show)


def _pictures(server: Server) -> str:
    """Each prompt drawn without and with steering, as figures."""
    out = []
    for prompt in DRAWN.values():
        figures = (
            _figure(server, _draw(server, prompt, steered), "save", f"{prompt}, {'steered' if steered else 'as asked'}")
            for steered in (False, True)
        )
        out.append(f'<div class="pair drawn">{"".join(figures)}</div>')
    return "".join(out)


def _titles(workflow: dict[str, Any]) -> dict[str, str]:
    return {node["title"]: str(node["id"]) for node in workflow["nodes"] if "title" in node}


def _add_pictures(graph: dict[str, Any], inspect: str, name: str) -> None:
    """Inspect the prompt as it was too, and show both heat maps."""
    after = graph[inspect]
    applied = graph[after["inputs"]["conditioning"][0]]
    graph[f"{name}, as it was"] = {
        **after,
        "inputs": after["inputs"] | {"conditioning": applied["inputs"]["conditioning"]},
    }
    for when, source in (("before", f"{name}, as it was"), ("after", inspect)):
        graph[f"{name}, {when}"] = {"class_type": "PreviewImage", "inputs": {"images": [source, 0]}}


def main() -> int:
    """Run the demo; returns the exit status."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    ids = _titles(workflow)
    print("starting ComfyUI ...", flush=True)
    with Server(packs={PACK: ROOT, "safety_directions_miniature": ROOT / "miniature" / "pack"}) as server:
        version = server.system_stats()["system"].get("comfyui_version", "")
        graph = to_api(workflow, server.object_info())
        for name in PROMPTS:
            _add_pictures(graph, ids[f"Inspect {name}"], name)
        print(f"ComfyUI {version} at {server.url}: aligning and steering (about a minute on a CPU)", flush=True)
        result = server.queue(graph, _show)
        print()
        sections, table = [], []
        for name in PROMPTS:
            prompt = graph[ids[name]]["inputs"]["value"]
            figures = "".join(_figure(server, result, f"{name}, {when}", when) for when in ("before", "after"))
            before, after = (_shown(result, node) for node in (f"{name}, as it was", ids[f"Inspect {name}"]))
            sections.append(
                f"<h2>{name}: “{html.escape(prompt)}”</h2><div class=pair>{figures}</div><p>before: "
                f"{before}<br>after: {after}</p>"
            )
            print(f"  {name}: {_score(before):+.2f} -> {_score(after):+.2f} (gate)")
        for alpha in ALPHAS:
            for node in graph.values():
                if node["class_type"] == "SafetyDirectionApply":
                    node["inputs"] |= {"mode": "add", "alpha": alpha}
            swept = server.queue(graph, _show)
            table.append((alpha, *(_score(_shown(swept, ids[f"Inspect {name}"])) for name in PROMPTS)))
        pictures = _pictures(server)
    rows = "".join(f"<tr><td>{a:g}</td><td>{u:+.2f}</td><td>{b:+.2f}</td></tr>" for a, u, b in table)
    sweep = f"<table><tr><th>alpha</th><th>unsafe prompt</th><th>benign prompt</th></tr>{rows}</table>"
    REPORT.parent.mkdir(exist_ok=True)
    partial = REPORT.with_suffix(".partial")
    partial.write_text(
        PAGE.format(version=html.escape(version), sections="".join(sections), pictures=pictures, sweep=sweep),
        encoding="utf-8",
    )
    partial.replace(REPORT)
    print(f"the report is at {REPORT}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (EnvironmentFailure, ServerError, GraphError, TimeoutError) as error:
        print(f"\nthe demo failed: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
