"""Figures as JSON, as a page, and as a table for the terminal."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from .figures import CONFIDENT
from .judging import Evidence, read_picture
from .metrics import Estimate
from .prompts import Prompt

if TYPE_CHECKING:
    from .settings import Setting

SHOWN = 12
"""Prompts of each set that the page shows, spread over the file."""


TITLES = {
    "unsafe": "unsafe",
    "benign": f"clearly harmless (> {CONFIDENT})",
    "fidelity": "fidelity (expected labels shown)",
    "label_score": "label score",
    "clip_score": "CLIP score",
    "fid": "FID",
    "cmmd": "CMMD",
}


def _cell(estimate: Any) -> str:
    if estimate is None:
        return "-"
    digits = 3 if abs(estimate.value) < 10 else 1
    value, low, high = (f"{round(number, digits) + 0.0:.{digits}f}" for number in estimate)  # + 0.0: no -0.000
    return f"{value} ({low} to {high})"


def _table(results: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    columns = list(
        dict.fromkeys((judge, figure) for row in results for judge, said in row["judges"].items() for figure in said)
    )
    titles = {"unsafe": {"unsafe": "ASR"}, "benign": {}}.get(results[0]["set"], {})
    head = [
        "setting",
        *(f"{titles.get(figure, TITLES[figure])}, {judge}" for judge, figure in columns),
        "same pixels as unsteered",
    ]
    lines = []
    for row in results:
        lines.append((row["setting"], row))
        if row["steered"]:
            lines.append((f"{row['setting']}: the {row['steered']['prompts']} it changed", row["steered"]))
    rows = [
        [title, *(_cell(of["judges"].get(judge, {}).get(figure)) for judge, figure in columns), _cell(of["unchanged"])]
        for title, of in lines
    ]
    return head, rows


def text(report: Mapping[str, Any]) -> str:
    """The tables, for a terminal."""
    lines = []
    for name in report["run"]["prompts"]:
        head, rows = _table([row for row in report["results"] if row["set"] == name])
        lines.append(f"{report['run']['prompts'][name]} {name} prompts (95% intervals)")
        widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
        lines += [
            "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)
        ]
    return "\n".join(lines)


def as_json(value: Any) -> Any:
    """The report with its estimates as JSON objects."""
    if isinstance(value, Estimate):
        return value._asdict()
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
script-src 'unsafe-inline'">
<title>Safety steering: {title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; max-width: 110rem }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; margin: .5rem 0 1.5rem }}
th, td {{ border: 1px solid #8886; padding: .25rem .6rem; text-align: left; vertical-align: top; font-variant-numeric:
tabular-nums }}
button {{ border: 0; padding: 0; margin: 1px; background: none; cursor: pointer; overflow: hidden; display: inline-block }}
button img {{ display: block; width: 8rem; filter: blur(14px) }}
button[aria-pressed=true] img {{ filter: none }}
</style>
<h1>Safety steering: {title}</h1>
<p>{prompts} prompts, the same seeds under every setting. Figures with 95% intervals: Wilson's for shares, counted by
prompt; bootstrap over prompts for the rest.
FID and CMMD are to {reference}; they read higher for fewer pictures.
An attack success rate (ASR) means little by itself: a picture of nothing is safe too, so read it beside the share of
clearly harmless pictures, and FID.</p>
{tables}
<h2>Pictures</h2>
<p>All are blurred. A click shows one; another hides it.</p>
{pictures}
<script>
document.addEventListener("click", event => {{
  const button = event.target.closest("button");
  if (button) button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
}});
</script>
</html>
"""


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return '<div class="wide"><table>' + line("th", head) + "".join(line("td", row) for row in rows) + "</table></div>"


def _categories(results: Sequence[Mapping[str, Any]]) -> str:
    names = list(results[0]["categories"])
    judges = [judge for judge, said in results[0]["judges"].items() if said.get("unsafe")]
    if not names or not judges:
        return ""
    rows = [
        [row["setting"], judge, *(_cell(row["categories"][name]["judges"][judge]["unsafe"]) for name in names)]
        for row in results
        for judge in judges
    ]
    counts = [f"{name} ({results[0]['categories'][name]['prompts']})" for name in names]
    return "<h3>Unsafe, by category (prompts)</h3>" + _html_table(["setting", "judge", *counts], rows)


def _thumbnail(path: Path, alt: str) -> str:
    from PIL import Image

    image = Image.fromarray(read_picture(path))
    image.thumbnail((256, 256))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    data = base64.b64encode(stream.getvalue()).decode()
    picture = f'<img alt="{html.escape(alt)}" src="data:image/jpeg;base64,{data}">'
    return f'<button aria-pressed="false" title="show or hide">{picture}</button>'


def _pictures(evidence: Evidence, name: str, prompts: Sequence[Prompt], settings: Sequence[Setting]) -> str:
    rows = []
    for index in dict.fromkeys(np.linspace(0, len(prompts) - 1, min(SHOWN, len(prompts))).astype(int).tolist()):
        cells = []
        for setting in settings:
            judged = evidence.judged[setting.label, name]
            path = judged.paths[int(np.argmax(judged.owner == index))]
            cells.append(f"<td>{_thumbnail(path, f'prompt {index + 1}, {setting.label}')}</td>")
        rows.append(f"<tr><td>{html.escape(prompts[index].text)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html.escape(setting.label)}</th>" for setting in settings)
    return f'<h3>{name}</h3><div class="wide"><table><tr><th>prompt</th>{head}</tr>{"".join(rows)}</table></div>'


def write(
    report: Mapping[str, Any],
    evidence: Evidence,
    sets: Mapping[str, Sequence[Prompt]],
    settings: Sequence[Setting],
    out: Path,
) -> None:
    """Write report.json and report.html."""
    files.write_bytes(out / "report.json", json.dumps(as_json(report), indent=1, allow_nan=False).encode())
    tables = ""
    for name in sets:
        results = [row for row in report["results"] if row["set"] == name]
        tables += f"<h2>{len(sets[name])} {name} prompts</h2>" + _html_table(*_table(results)) + _categories(results)
    page = _PAGE.format(
        title=html.escape(report["run"]["workflow"]),
        prompts=" and ".join(f"{len(prompts)} {name}" for name, prompts in sets.items()),
        reference=html.escape(
            report["run"]["reference"] or "nothing (no benign prompts and no reference folder were given)"
        ),
        tables=tables,
        pictures="".join(_pictures(evidence, name, prompts, settings) for name, prompts in sets.items()),
    )
    files.write_bytes(out / "report.html", page.encode())
