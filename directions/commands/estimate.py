"""estimate: learn a direction in a local language model."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

HELP = "learn a direction in a local language model (needs transformers)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="a Hugging Face folder with *.safetensors, or a .gguf file")
    parser.add_argument("--name", required=True, help="the model's name; also the file's, without --out")
    parser.add_argument("--out", type=Path, help="file to write (default: NAME.safetensors in this folder)")
    parser.add_argument(
        "--layer",
        default="auto",
        help='hidden layer, several as "8,20", or "auto" (default): the one that separates unseen themes best',
    )
    parser.add_argument("--pairs", type=Path, help="folder of <category>.tsv (default: the shipped pairs)")
    parser.add_argument("--anchors", type=Path, help="benign prompts, .tsv (default: the shipped anchors)")
    parser.add_argument(
        "--most",
        type=int,
        metavar="N",
        help="anchors that the file carries at most, those that say most (the shipped one: 8500)",
    )
    parser.add_argument("--licence", default="", help="licence of the direction, for the file")
    parser.add_argument("--device-map", default=None, help='"auto" splits and offloads a big model through accelerate')


def run(args: argparse.Namespace) -> None:
    from ..estimate import estimate
    from ..prompts import HERE, read_pairs, training_anchors
    from ..sources import load_source, terminal, weights_hash

    layer = args.layer if args.layer == "auto" else [int(part) for part in args.layer.split(",")]
    pairs = read_pairs(args.pairs or HERE / "pairs")
    given = training_anchors(pairs, args.anchors or HERE / "anchors.tsv")
    source = {"model": args.name, "weights_sha256": weights_hash(args.model)}
    path = args.out or Path(f"{args.name}.safetensors")
    keep = path.with_name(f"{path.name}.{source['weights_sha256'][:12]}.states")
    model, tokenizer = load_source(args.model, args.device_map, keep / "offload" if args.device_map else None)
    try:
        direction = estimate(
            model,
            tokenizer,
            pairs,
            **given._asdict(),
            layer=layer,
            most=args.most,
            source=source,
            licence=args.licence,
            progress=terminal,
            keep=keep,
        )
    except KeyboardInterrupt:
        print(
            f"interrupted; the states read so far are in {keep.name}, and the same command goes on from there",
            file=sys.stderr,
        )
        raise
    direction.save(path)
    shutil.rmtree(keep, ignore_errors=True)
    print(
        f"{path.name}: {len(direction.categories)} categories, {len(direction.anchor_prompts)} anchors, layers "
        f"{direction.source['layers']}"
    )
