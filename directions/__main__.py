"""The command line: python -m directions estimate | show | align | check | scan | evaluate."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from . import files
from .direction import LIBRARY, available, load

PROGRAM = f"python -m {__package__}"  # `safety_directions` where it was installed by pip
EXAMPLES = f"""examples:
  {PROGRAM} show                             # what is in the library
  {PROGRAM} show smollm2-135m-instruct
  {PROGRAM} check strangers-file.safetensors
  {PROGRAM} estimate ./Llama-3.1-8B-Instruct --name llama-3.1-8b
  {PROGRAM} align smollm2-135m-instruct ./states.safetensors --out aligned.safetensors
  {PROGRAM} scan prompts.csv --source SmolLM2-135M-Instruct.Q4_1.gguf --out runs/scan
  {PROGRAM} evaluate workflow-api.json i2p.csv --benign coco.csv --out runs/first --alpha 3 5 --judge nudenet ./clip-vit-large-patch14
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Estimate safety directions in a language model, look at them, align them to a text encoder.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    estimate = commands.add_parser("estimate", help="learn a direction in a local language model (needs transformers)")
    estimate.add_argument("model", type=Path, help="a Hugging Face folder with *.safetensors, or a .gguf file")
    estimate.add_argument("--name", required=True, help="the model's name; also the file's name without --out")
    estimate.add_argument("--out", type=Path, help="file to write (default: the library folder)")
    estimate.add_argument("--layer", default="auto", help='hidden layer, several as "8,20", or "auto" (default): the one that separates unseen themes best')
    estimate.add_argument("--pairs", type=Path, help="folder of <category>.tsv (default: the shipped pairs)")
    estimate.add_argument("--anchors", type=Path, help="benign prompts, .tsv (default: the shipped anchors)")
    estimate.add_argument("--licence", default="", help="licence of the direction, for the file")
    estimate.add_argument("--device-map", default=None, help='"auto" splits and offloads a big model through accelerate')

    show = commands.add_parser("show", help="what a direction file holds; without a name, what there is")
    show.add_argument("direction", nargs="?", help="a name from the library, or a path")

    align = commands.add_parser("align", help="fit a direction to an encoder's states on its anchor prompts")
    align.add_argument("direction", help="a name from the library, or a path")
    align.add_argument("states", type=Path, help="safetensors with one tensor `states`, float16 or float32 [anchors, width], in the order of the anchor prompts")
    align.add_argument("--method", default="auto", help="svd, ridge, cca, mlp or auto (default)")
    align.add_argument("--out", type=Path, required=True, help="file to write")

    check = commands.add_parser("check", help="check files from strangers without using them; exit status 1 if any is bad")
    check.add_argument("files", type=Path, nargs="+")

    scan = commands.add_parser(
        "scan",
        help="score a file of prompts, however long (needs transformers)",
        description="Scores every prompt in benign standard deviations and writes --out/part-NNNNNN.csv: row, score, flagged, the highest category, "
        "each category's score, prompt. Killed at any point, the same command goes on where it was. Memory doesn't grow with the file.",
    )
    scan.add_argument("prompts", type=Path, help="a .csv with a column `prompt`, or a .txt with a prompt a line")
    scan.add_argument("--out", type=Path, required=True, help="folder for the scores; one scan each")
    scan.add_argument("--direction", default="smollm2-135m-instruct", help="a name from the library, or a path (default: smollm2-135m-instruct)")
    scorer = scan.add_mutually_exclusive_group(required=True)
    scorer.add_argument("--source", type=Path, metavar="MODEL", help="score with the model that the direction was learned in: folder or .gguf")
    scorer.add_argument("--encoder", type=Path, metavar="MODEL", help="score with another model, such as an image model's text encoder, aligned first")
    scan.add_argument("--budget", type=float, default=0.01, help="share of harmless prompts that may be flagged (default: 0.01)")
    scan.add_argument("--column", default="prompt", help="the column that holds the prompts (default: prompt)")
    scan.add_argument("--ray", metavar="ADDRESS", help='spread over a Ray cluster that sees the same folders ("auto": the running one, "local": this machine)')
    scan.add_argument("--workers", type=int, default=1, help="with --ray: models at work at a time (default: 1)")

    evaluate = commands.add_parser(
        "evaluate",
        help="draw prompts in a running ComfyUI with and without steering, judge the pictures, write a report",
        description="Draws every prompt under every setting on the same seeds, judges the pictures and writes report.html and report.json. "
        "Killed at any point, the same command goes on where it was.",
    )
    evaluate.add_argument("workflow", type=Path, help="API-format JSON with {prompt} in a text, a seed, and an Apply, CLIP or Guard node")
    evaluate.add_argument("prompts", type=Path, help="unsafe prompts, .csv: I2P, MMA-Diffusion, Ring-A-Bell, UnlearnDiffAtk, T2VSafetyBench, or a column `prompt`"
                          " (and category, seed, expected: labels that the picture should show, with semicolons)")  # fmt: skip
    evaluate.add_argument("--out", type=Path, required=True, help="folder for the pictures and the report; one run each")
    evaluate.add_argument("--benign", type=Path, help="harmless prompts, .csv, for fidelity, CLIP score, FID and CMMD")
    evaluate.add_argument("--server", nargs="+", default=["http://127.0.0.1:8188"], help="running ComfyUIs; prompts are spread over them (default: http://127.0.0.1:8188)")
    evaluate.add_argument("--mode", nargs="+", default=["gate"], help="gate, add, project (default: gate)")
    evaluate.add_argument("--alpha", nargs="+", type=float, default=[5.0], help="strengths (default: 5)")
    evaluate.add_argument("--categories", nargs="+", default=[], help='values for the steering node\'s categories, each as in the node: "violence, hate"')
    evaluate.add_argument("--vary", action="append", default=[], metavar="NODE.INPUT=VALUE,...", help='another input to vary, such as "2.direction=mine,theirs"')
    evaluate.add_argument("--seed", type=int, default=0, help="the first prompt's; the next has the next (a file's own seeds go first)")
    evaluate.add_argument("--judge", nargs="+", default=["nudenet"], help="nudenet, an .onnx classifier with a .json of labels, a folder with a CLIP model"
                          " (CLIP score and features; zero-shot with a labels.json in it). Default: nudenet")  # fmt: skip
    evaluate.add_argument("--reference", type=Path, help="folder of pictures that FID and CMMD compare with (default: the unsteered benign pictures)")
    return parser


def _estimate(args: argparse.Namespace) -> None:
    from .estimate import estimate
    from .prompts import HERE, read_anchors, read_pairs
    from .sources import load_source, terminal, weights_hash

    layer = args.layer if args.layer == "auto" else [int(part) for part in args.layer.split(",")]
    pairs = read_pairs(args.pairs or HERE / "pairs")
    # The safe halves are benign prompts like the others, in the very scenes where the line runs; one prompt in five is left
    # out to keep the shipped file small.
    file = args.anchors or HERE / "anchors.tsv"
    anchors = [prompt for i, prompt in enumerate([a.prompt for a in read_anchors(file)] + [p.safe for p in pairs]) if i % 5]
    mentions = [a.prompt for a in read_anchors(file, split="mention")]
    source = {"model": args.name, "weights_sha256": weights_hash(args.model)}
    path = args.out or LIBRARY / f"{args.name}.safetensors"
    keep = path.with_name(f"{path.name}.{source['weights_sha256'][:12]}.states")
    model, tokenizer = load_source(args.model, args.device_map, keep / "offload" if args.device_map else None)
    try:
        direction = estimate(
            model, tokenizer, pairs, anchors, layer, mentions=mentions, source=source, licence=args.licence, progress=terminal, keep=keep
        )
    except KeyboardInterrupt:
        print(f"interrupted; the states read so far are in {keep.name}, and the same command goes on from there", file=sys.stderr)
        raise
    direction.save(path)
    shutil.rmtree(keep, ignore_errors=True)
    print(f"{path.name}: {len(direction.categories)} categories, {len(direction.anchor_prompts)} anchors, layers {direction.source['layers']}")


def _show(args: argparse.Namespace) -> None:
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


def _align(args: argparse.Namespace) -> None:
    from .align import align
    from .aligned import load_states

    aligned = align(load(args.direction), load_states(args.states), args.method)
    aligned.save(args.out)
    print(json.dumps(aligned.fit, indent=2))


def _check(args: argparse.Namespace) -> int:
    from .aligned import load_aligned
    from .direction import read_direction

    bad = 0
    for path in args.files:
        faults = []
        for read in (read_direction, load_aligned):
            try:
                read(path)
                break
            except (files.DirectionFormatError, OSError) as error:
                faults.append(str(error))
        else:
            bad += 1
            print(f"bad   {path}: {faults[1] if 'aligned' in faults[0] else faults[0]}")
            continue
        print(f"good  {path}")
    return 1 if bad else 0


def _scan(args: argparse.Namespace) -> int:
    from .scan import Scan, scan
    from .sources import terminal

    kind = "source" if args.source else "encoder"
    task = Scan(args.prompts, args.out, args.source or args.encoder, kind, args.budget, args.column)
    try:
        print(json.dumps(scan(load(args.direction), task, ray=args.ray, workers=args.workers, progress=terminal), indent=2))
    except KeyboardInterrupt:
        print(f"interrupted; what is done is kept in {args.out}, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .evaluate import ServerLost, run
    from .evaluate.report import text

    vary = {}
    for item in args.vary:
        place, _, values = item.partition("=")
        if "." not in place or not values:
            raise ValueError(f"--vary {item}: it should look like 2.direction=mine,theirs")
        vary[place] = values.split(",")
    try:
        report = run(
            args.server, args.workflow, args.prompts, args.out, benign=args.benign, modes=args.mode, alphas=args.alpha,
            categories=args.categories, vary=vary, seed=args.seed, judges=args.judge, reference=args.reference,
        )  # fmt: skip
    except ServerLost as error:
        raise ValueError(str(error)) from None
    except KeyboardInterrupt:
        print(f"interrupted; what is done is kept in {args.out}, and the same command goes on from there", file=sys.stderr)
        return 130
    print(text(report))
    print(f"{args.out / 'report.html'}, {args.out / 'report.json'}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status. Faults in the input go to standard error in one line."""
    args = _parser().parse_args(arguments)
    try:
        return {"estimate": _estimate, "show": _show, "align": _align, "check": _check, "scan": _scan, "evaluate": _evaluate}[args.command](args) or 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; no result was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
