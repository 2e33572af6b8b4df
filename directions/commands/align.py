"""align: fit a direction to an encoder's states."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..direction import load

HELP = "fit a direction to an encoder's states on its anchor prompts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("direction", help="a name from the library, or a path")
    parser.add_argument(
        "states",
        type=Path,
        help="safetensors with one tensor `states`, float16 or float32 [anchors, width], in the order of the anchor prompts",
    )
    parser.add_argument("--method", default="auto", help="svd, ridge, cca, mlp or auto (default)")
    parser.add_argument("--out", type=Path, required=True, help="file to write")


def run(args: argparse.Namespace) -> None:
    from ..align import align
    from ..alignment import load_states

    aligned = align(load(args.direction), load_states(args.states), args.method)
    aligned.save(args.out)
    print(json.dumps(aligned.fit, indent=2))
