"""python -m benchmarks.trust [files] [kills] [load] [soak] [spelling] --minutes N: run campaigns, go on where they stopped,
print what they found."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path

CAMPAIGNS = ("files", "kills", "load", "soak", "spelling")
COUNTS = {"files": 1_000_000, "kills": 300, "load": 500, "soak": 1_000, "spelling": 10_000}
WHAT = {
    "files": "mutated files (needs pip install atheris)",
    "kills": "processes killed while they write",
    "load": "graphs queued on one ComfyUI",
    "soak": "graphs from ten clients of a guarded ComfyUI, whose policy changes, and which is killed",
    "spelling": "pairs of prompts at most, with the unsafe words spelt otherwise",
}


def main() -> int:
    """Run the named campaigns; 1 at a finding, which is printed and kept in the output folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__)
    parser.add_argument(
        "campaigns",
        nargs="*",
        choices=[[], *CAMPAIGNS],
        help="; ".join(f"{name}: {COUNTS[name]:,} {what}" for name, what in WHAT.items()),
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="at most so long for each (default 10)")
    parser.add_argument("--count", type=int, help="so many rather than the usual number")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-output") / "trust",
        help="corpus, findings and figures (default: %(default)s)",
    )
    args = parser.parse_args()
    for name in args.campaigns or CAMPAIGNS:
        out = args.out / name
        out.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        try:
            campaign = importlib.import_module(f".{name}", __package__).campaign
            found = campaign(out.resolve(), args.minutes, args.count or COUNTS[name])
        except ImportError as error:
            print(f"{name}: {error}; pip install atheris", file=sys.stderr)
            return 2
        except AssertionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(name, json.dumps(found | {"minutes": round((time.monotonic() - started) / 60, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
