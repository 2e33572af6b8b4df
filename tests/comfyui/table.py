"""Write the table of families in docs/encoders.md, from what the tests left in demo-output.

for v in 0.30.0 0.24.1 0.18.2 0.16.3; do SAFETY_DIRECTIONS_COMFYUI=$v python -m pytest tests/comfyui/test_families.py; done
python -m tests.comfyui.table
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from harness.server import ROOT
from tests.comfyui.families import DTYPES, ENTRIES, FAMILIES

BEGIN, END = "<!-- families: made by tests/comfyui/table.py -->", "<!-- end of families -->"


def cell(results: Mapping[str, str] | None, entry: str) -> str:
    """One family at one entry point in one version: passed in every precision, or not. One that has no states to move is
    refused."""
    if results is None or "not run" in results:
        return "not run"
    if "refused" in results:
        return "refused" if results["refused"] == "pass" else "**fail**"
    wanted = [f"{entry} {dtype}" for dtype in DTYPES]
    return "pass" if all(results.get(key) == "pass" for key in wanted) else "**fail**"


def table(reports: Sequence[Mapping]) -> str:
    """The table in Markdown; a column for each ComfyUI version, the entry points inside."""
    lines = [
        f"| {' / '.join(ENTRIES)} | slots | " + " | ".join(f"ComfyUI {report['comfyui']}" for report in reports) + " |",
        "|---|---|" + "---|" * len(reports),
    ]
    reasons: dict[str, list[str]] = {}
    for name, family in FAMILIES.items():
        cells = []
        for report in reports:
            results = report["families"].get(name)
            found = {entry: cell(results, entry) for entry in ENTRIES}
            if set(found.values()) == {"not run"}:
                cells.append("not run")
                reasons.setdefault(name, []).append(
                    f"{report['comfyui']} ({(results or {}).get('not run', 'no such test')})"
                )
            else:
                same = set(found.values()) == {"refused"}
                cells.append("refused" if same else " / ".join(found[entry] for entry in ENTRIES))
        slots = (
            ", ".join(dict.fromkeys(re.sub(r"\[\d+\]", " (every layer)", slot) for slot in family.content)) or "none"
        )
        lines.append(f"| {name} | {slots} | {' | '.join(cells)} |")
    lines += ["", *(f"Not run: {name}, {'; '.join(why)}." for name, why in reasons.items())]
    return "\n".join(lines).rstrip()


def main() -> None:
    """Replace the table between its markers in docs/encoders.md."""
    files = sorted((ROOT / "demo-output").glob("families-*.json"), reverse=True)
    text = table([json.loads(file.read_text()) for file in files])
    page = ROOT / "docs" / "encoders.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
