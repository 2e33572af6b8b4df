"""The commands: `python -m miniature train|judge|measure|sample|sheet`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from .encoder import MINILM, WIDTHS


def main() -> None:
    from . import train as training

    parser = argparse.ArgumentParser(prog="python -m miniature", description="A miniature text-to-image generator.")
    parser.add_argument(
        "--work", type=Path, default=training.default_work(), help="folder for checkpoints (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for training (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser(
        "train", help="train the generator, its cross-attention for Gemma, or its motion; goes on from its checkpoint"
    )
    part.add_argument("part", nargs="?", default="generator", choices=list(training.PARTS), help="(%(default)s)")
    part.add_argument("--steps", type=int, help="steps in all (those of its cycles)")
    part = commands.add_parser("judge", help="train the judge and print its accuracy")
    part.add_argument("--steps", type=int, default=2000, help="steps (%(default)s)")
    part = commands.add_parser("measure", help="fidelity of the trained generator, by kind of prompt")
    part.add_argument("--count", type=int, default=200, help="prompts of each kind (%(default)s)")
    _kind(part)
    part = commands.add_parser("sample", help="draw captions into one PNG")
    _kind(part)
    part.add_argument("captions", nargs="+")
    part.add_argument("--out", type=Path, default=Path("miniature.png"))
    part = commands.add_parser("sheet", help="draw every icon: rendered, or generated with --generated")
    part.add_argument("--generated", action="store_true")
    _kind(part)
    part.add_argument("--out", type=Path, default=Path("sheet.png"))
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    if args.command == "train":
        print(training.train(args.work, args.part, args.steps, args.threads, args.device))
        return

    from . import judge, measure, model, scenes
    from .encoder import Encoder

    def draw(asked: list[scenes.Scene]) -> torch.Tensor:
        return measure.frames(
            measure.draw(model.load(args.encoder, args.video), Encoder(args.encoder), asked, video=args.video)
        )

    if args.command == "judge":
        print(judge.accuracy(judge.train(args.steps, threads=args.threads, device=args.device)))
    elif args.command == "measure":
        table = measure.measure(
            model.load(args.encoder, args.video), judge.load(), Encoder(args.encoder), args.count, video=args.video
        )
        for kind, row in table.items():
            print(f"{kind:24}", "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    elif args.command == "sample":
        scenes.contact_sheet(
            draw([scenes.Scene(caption, (), None) for caption in args.captions]), args.out, columns=8, zoom=6
        )
    elif args.command == "sheet":
        asked, rng = measure.sheet(), random.Random(0)
        rendered = measure.frames(scenes.film_batch(asked, rng)) if args.video else scenes.render_batch(asked, rng)
        scenes.contact_sheet(
            draw(asked) if args.generated else rendered, args.out, columns=28 if args.video else 14, zoom=4
        )


def _kind(part: argparse.ArgumentParser) -> None:
    part.add_argument(
        "--encoder", default=MINILM, choices=list(WIDTHS), help="whose states the generator reads (%(default)s)"
    )
    part.add_argument("--video", action="store_true", help="clips, not pictures")


if __name__ == "__main__":
    main()
