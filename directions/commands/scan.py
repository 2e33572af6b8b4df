"""scan: score a file of prompts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..direction import load
from ..prompt_files import FORMATS

HELP = "score a file of prompts, however long (needs transformers)"
DESCRIPTION = """Scores every prompt in benign standard deviations and writes --out/part-NNNNNN.csv: row (of a folder also
its file), score, flagged, the highest category, each category's score, prompt. A row without a prompt has no score. Killed
at any point, the same command goes on where it was. Memory doesn't grow with the file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompts", type=Path, help=FORMATS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the scores; one scan each")
    parser.add_argument(
        "--direction",
        default="smollm2-135m-instruct",
        help="a name from the library, or a path (default: smollm2-135m-instruct)",
    )
    scorer = parser.add_mutually_exclusive_group(required=True)
    scorer.add_argument(
        "--source",
        type=Path,
        metavar="MODEL",
        help="score with the model that the direction was learned in: folder or .gguf",
    )
    scorer.add_argument(
        "--encoder",
        type=Path,
        metavar="MODEL",
        help="score with another model, such as an image model's text encoder, aligned first",
    )
    parser.add_argument(
        "--budget", type=float, default=0.01, help="share of harmless prompts that may be flagged (default: 0.01)"
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="the column of the prompts (default: the one called prompt, caption, text or the like)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help='spread over a Ray cluster that sees the same folders ("auto": the running one, "local": this machine)',
    )
    parser.add_argument("--workers", type=int, default=1, help="with --ray: models at work at a time (default: 1)")


def run(args: argparse.Namespace) -> int:
    from ..scan import Scan, scan
    from ..sources import terminal

    kind = "source" if args.source else "encoder"
    task = Scan(args.prompts, args.out, args.source or args.encoder, kind, args.budget, args.column)
    try:
        print(
            json.dumps(
                scan(load(args.direction), task, ray=args.ray, workers=args.workers, progress=terminal), indent=2
            )
        )
    except KeyboardInterrupt:
        print(
            f"interrupted; what is done is kept in {args.out}, and the same command goes on from there", file=sys.stderr
        )
        return 130
    return 0
