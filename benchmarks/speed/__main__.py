"""What the pack costs: python -m benchmarks.speed [sections ...] [--json FILE]

Everything that is compared runs in turn within one process, and the table gives ratios of what ran side by side; absolute
times are this machine's. Sections: see --help.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from .clock import Row

SECTIONS = {
    "steer": ("steering:measure", "Apply Safety Direction against one CLIP-L encode"),
    "align": ("aligning:measure", "reading the anchors, against the encoder's own passes"),
    "usable": ("usable:measure", "the fewest anchors that are read, against all: time, and what is lost"),
    "flux": ("flux:measure", "FLUX's encoders: on a graphics card at their real size, else counted on small ones"),
    "again": ("aligning:again", "aligning the same encoder a second time"),
    "size": ("size:measure", "how large a file an alignment is"),
    "solve": ("solving:measure", "the maps at 4096 x 4096"),
    "memory": ("memory:measure", "peak memory of fitting a slot at width 4096, by anchors"),
    "wide": ("wide:measure", "the same of stacks of layers, up to 53,248 wide"),
    "start": ("startup:measure", "what the pack adds to ComfyUI's start"),
    "others": ("neighbours:measure", "SAFREE, a language model and an image filter, against a steered prompt"),
    "growth": ("growth:measure", "by tokens, width, categories and anchors; draws docs/speed-growth.png"),
}


def run(names: list[str]) -> dict[str, list[Row]]:
    """The rows of each section, printed as they come."""
    found: dict[str, list[Row]] = {}
    for name in names:
        place, title = SECTIONS[name]
        module, _, function = place.partition(":")
        print(f"\n{name}: {title}", flush=True)
        found[name] = []
        for row in getattr(importlib.import_module(f"{__package__}.{module}"), function)():
            found[name].append(row)
            print(line(row), flush=True)
    return found


def line(row: Row) -> str:
    """A row as the table shows it."""
    value, verdict = "-" if row.value is None else f"{row.value:.3g}", {True: "met", False: "MISSED", None: ""}[row.met]
    return f"  {row.what:46} {value:>10} {row.unit:3} {row.target:10} {verdict:7} {row.detail}"


def main() -> int:
    """Run sections; returns the exit status, which says nothing about targets."""
    listing = "\n".join(f"  {name:8} {title}" for name, (_, title) in SECTIONS.items())
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"sections:\n{listing}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", help="which (default: all)")
    parser.add_argument("--json", type=Path, help="file for the figures; sections that aren't run keep theirs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads for torch")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}: choose from {', '.join(SECTIONS)}")
    torch.set_num_threads(args.threads)
    found = run(args.sections or list(SECTIONS))
    if args.json:
        kept: dict[str, Any] = json.loads(args.json.read_text(encoding="utf-8")) if args.json.is_file() else {}
        kept |= {
            name: {
                "threads": args.threads,
                "torch": torch.__version__,
                "machine": platform.machine(),
                "rows": [{**row._asdict(), "met": row.met} for row in rows],
            }
            for name, rows in found.items()
        }
        args.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten: {args.json.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
