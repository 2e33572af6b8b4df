"""show: what a direction file holds."""

from __future__ import annotations

import argparse
import json

from ..direction import available, load

HELP = "what a direction file holds; without a name, what there is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("direction", nargs="?", help="a name from the library, or a path")


def run(args: argparse.Namespace) -> None:
    if args.direction is None:
        for name in available():
            print(name)
        return
    direction = load(args.direction)
    facts = {
        "name": direction.name,
        "source": dict(direction.source),
        "categories": list(direction.categories),
        "width": direction.width,
        "anchors": len(direction.anchor_prompts),
        "mentions": int(direction.mentioned.sum()),
        "readers": bool(direction.readers),
        "norms": {name: round(vector.norm().item(), 4) for name, vector in direction.vectors.items()},
        "pairs": dict(direction.pairs),
        "licence": direction.licence,
        "created": direction.created,
        "fingerprint": direction.fingerprint,
    }
    print(json.dumps(facts, indent=2))
