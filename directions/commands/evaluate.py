"""evaluate: draw prompts with and without steering, judge the pictures, report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..prompt_files import FORMATS

HELP = "draw prompts in a running ComfyUI with and without steering, judge the pictures, write a report"
DESCRIPTION = """Draws every prompt under every setting on the same seeds, judges the pictures and writes report.html and
report.json. Killed at any point, the same command goes on where it was."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "workflow", type=Path, help="API-format JSON with {prompt} in a text, a seed, and an Apply, CLIP or Guard node"
    )
    parser.add_argument(
        "prompts",
        type=Path,
        help="unsafe prompts: I2P, MMA-Diffusion, Ring-A-Bell, UnlearnDiffAtk, T2VSafetyBench as they come, or a column `prompt` "
        "(and category, seed, expected: labels that the picture should show, with semicolons). " + FORMATS,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and the report; one run each")
    parser.add_argument(
        "--benign", type=Path, help="harmless prompts, for fidelity, CLIP score, FID and CMMD; such a file too"
    )
    for option, file in (("--column", "the prompts"), ("--benign-column", "the --benign prompts")):
        parser.add_argument(
            option,
            metavar="NAME",
            help=f"the column of {file} (default: the one called prompt, caption, text or the like)",
        )
    parser.add_argument(
        "--server",
        nargs="+",
        default=["http://127.0.0.1:8188"],
        help="running ComfyUIs; prompts are spread over them (default: http://127.0.0.1:8188)",
    )
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mode", nargs="+", default=["gate"], help="gate, graded, add, project (default: gate)")
    parser.add_argument("--alpha", nargs="+", type=float, default=[5.0], help="strengths (default: 5)")
    parser.add_argument(
        "--categories",
        nargs="+",
        default=[],
        help='values for the steering node\'s categories, each as in the node: "violence, hate"',
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NODE.INPUT=VALUE,...",
        help='another input to vary, such as "2.direction=mine,theirs"',
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the first prompt's; the next has the next (a file's own seeds go first)"
    )
    parser.add_argument(
        "--judge",
        nargs="+",
        default=["nudenet"],
        help="nudenet, an .onnx classifier with a .json of labels, a folder with a CLIP model (CLIP score and features; "
        "zero-shot with a labels.json in it). Default: nudenet",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        help="folder of pictures that FID and CMMD compare with (default: the unsteered benign pictures)",
    )


def run(args: argparse.Namespace) -> int:
    from ..evaluate import ServerLost, run
    from ..evaluate.report import text

    vary = {}
    for item in args.vary:
        place, _, values = item.partition("=")
        if "." not in place or not values:
            raise ValueError(f"--vary {item}: it should look like 2.direction=mine,theirs")
        vary[place] = values.split(",")
    try:
        report = run(
            args.server,
            args.workflow,
            args.prompts,
            args.out,
            benign=args.benign,
            column=args.column,
            benign_column=args.benign_column,
            modes=args.mode,
            alphas=args.alpha,
            categories=args.categories,
            vary=vary,
            seed=args.seed,
            judges=args.judge,
            reference=args.reference,
        )
    except ServerLost as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        print(
            f"interrupted; what is done is kept in {args.out}, and the same command goes on from there", file=sys.stderr
        )
        return 130
    print(text(report))
    print(f"{args.out / 'report.html'}, {args.out / 'report.json'}")
    return 0
