"""align-all: an alignment for every text encoder of a running ComfyUI, as files to publish."""

from __future__ import annotations

import argparse
import sys

HELP = "align a direction to every text encoder of a running ComfyUI, as files to publish"
DESCRIPTION = """Has a running ComfyUI load every text encoder that it has, reads all of the direction's harmless prompts with
each, and saves the alignments in its models/safety_directions/aligned. Which encoders there are it learns from the checkpoints,
from the workflows saved in that ComfyUI, and from its templates. What is saved already is passed over. Interrupted or killed at
any point, the same command goes on where it was."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        default="http://127.0.0.1:8188",
        help="the running ComfyUI, with this pack in it (default: %(default)s)",
    )
    parser.add_argument(
        "--direction",
        default="smollm2-135m-instruct",
        help="its library's or models/safety_directions' (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    from ..align_all import align_all
    from ..evaluate.client import ServerLost

    try:
        made = align_all(args.server, args.direction, print)
    except ServerLost as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        print("interrupted; what was read is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 1 if made.failed and not made.files else 0
