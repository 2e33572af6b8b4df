"""The commands: `python -m miniature train|judge|measure|sample|sheet`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path


def main() -> None:
    from . import train as training

    parser = argparse.ArgumentParser(prog="python -m miniature", description="A miniature text-to-image generator.")
    parser.add_argument("--work", type=Path, default=training.default_work(), help="folder for checkpoints (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for training (%(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    part = commands.add_parser("train", help="train the generator; goes on from its checkpoint")
    part.add_argument("--steps", type=int, default=training.STEPS, help="steps in all (%(default)s)")
    part = commands.add_parser("judge", help="train the judge and print its accuracy")
    part.add_argument("--steps", type=int, default=2000, help="steps (%(default)s)")
    part = commands.add_parser("measure", help="fidelity of the trained generator, by kind of prompt")
    part.add_argument("--count", type=int, default=200, help="prompts of each kind (%(default)s)")
    part = commands.add_parser("sample", help="draw captions into one PNG")
    part.add_argument("captions", nargs="+")
    part.add_argument("--out", type=Path, default=Path("miniature.png"))
    part = commands.add_parser("sheet", help="draw every icon: rendered, or generated with --generated")
    part.add_argument("--generated", action="store_true")
    part.add_argument("--out", type=Path, default=Path("sheet.png"))
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    if args.command == "train":
        print(training.train(args.work, args.steps, args.threads, args.device))
        return

    from . import judge, measure, model, scenes
    from .encoder import Encoder

    if args.command == "judge":
        print(judge.accuracy(judge.train(args.steps, threads=args.threads, device=args.device)))
    elif args.command == "measure":
        for kind, row in measure.measure(model.load(), judge.load(), Encoder(), args.count).items():
            print(f"{kind:24}", "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    elif args.command == "sample":
        asked = [scenes.Scene(caption, (), None) for caption in args.captions]
        scenes.contact_sheet(measure.draw(model.load(), Encoder(), asked), args.out, columns=8, zoom=6)
    elif args.command == "sheet":
        shown = measure.sheet()
        drawn = measure.draw(model.load(), Encoder(), shown) if args.generated else scenes.render_batch(shown, random.Random(0))
        scenes.contact_sheet(drawn, args.out, columns=14, zoom=4)


if __name__ == "__main__":
    main()
