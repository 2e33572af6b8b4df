"""Pictures: attack success, fidelity and FID of the miniature generator, drawn by a real ComfyUI through `evaluate`.

    python -m benchmarks.images [--encoder gemma-3-270m] [--out FOLDER] [--json benchmarks/images.json]

A small world (83 emoji, 32x32), a real trained encoder (all-MiniLM-L6-v2, or Gemma-3-270M), a 3 M parameter UNet that was
trained on its states, ComfyUI's own sampler. It shows the path from direction file to pixels and what steering costs; it
says nothing about how well FLUX is steered. Directions: `transferred` is the shipped file, which has never seen this
encoder; `native` was learned on the encoder itself from the training pairs; `random` has random vectors and readers.

ASR never stands alone: beside it are the share of pictures that clearly show something harmless, and FID to renderings.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Sequence

import directions
from directions.evaluate import run
from directions.evaluate.prompts import read_prompts
from directions.evaluate.report import text
from directions.evaluate.settings import UNSTEERED, Setting
from harness.server import PACK, ROOT, Server
from miniature import judge
from miniature.encoder import GEMMA, MINILM

from .baselines import native, noise
from .drift import drift
from .image_prompts import KINDS, reference, rendered_fid, replacements, seen, write_prompts

SHIPPED = "smollm2-135m-instruct"

FILES = {False: "workflow.json", True: "video.json"}

SERVERS = 2

SETS = (0, 1, 2)
"""Seeds of the prompts: the runs of WIDE are drawn on all of them, the others on the first alone."""

WIDE = ("budget-20", "budget-25")


def workflow(encoder: str = MINILM, video: bool = False) -> dict[str, Any]:
    """The miniature's graph, for another encoder or for clips of 4 frames."""
    graph = json.loads((ROOT / "miniature" / "workflow.json").read_text(encoding="utf-8"))
    graph["model"]["inputs"] = {"encoder": encoder, "video": video}
    if encoder == GEMMA:
        graph["clip"]["class_type"] = "SafetyDirectionsLoadGemma"
    if video:
        graph["latent"] = {
            "class_type": "EmptyHunyuanLatentVideo",
            "inputs": {"width": 32, "height": 32, "length": 13, "batch_size": 1},
        }
    return graph


def unhurried(encoder: str, video: bool = False) -> dict[str, Any]:
    """`workflow`, aligned with all anchors, however busy the machine is: the same fit in every run."""
    graph = workflow(encoder, video)
    graph["align"]["inputs"]["seconds"] = 0
    return graph


def prepare(out: Path, encoder: str, seeds: Sequence[int]) -> None:
    """The prompts, the workflows, the judge and the reference renderings that `evaluate` takes."""
    from PIL import Image

    write_prompts(out, seeds)
    for video in (False, True):
        (out / FILES[video]).write_text(json.dumps(unhurried(encoder, video)), encoding="utf-8")
    judge.export_onnx(judge.load(), out / "judge.onnx")
    folder = out / "reference"
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(reference()):
        Image.fromarray(((picture.transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype("uint8")).save(
            folder / f"{number:04}.png"
        )


SHOWN = f"gate-5-{SHIPPED}-0.2"
"""The setting of the run `budget-20` whose pictures stand in RESULTS.md."""


def sheet(run: Path, path: Path, sets: int, zoom: int = 3, columns: int = 11) -> None:
    """Evenly drawn unsafe prompts of the run `budget-20` and two benign ones: as asked above, steered below."""
    import textwrap

    from PIL import Image, ImageDraw, ImageFont

    chosen = []
    for name, file, count in (("unsafe", f"unsafe-{sets}.csv", columns), ("benign", "benign.csv", 2)):
        with (run.parent / file).open(newline="", encoding="utf-8") as stream:
            prompts = [row["prompt"] for row in csv.DictReader(stream)]
        chosen += [(name, i, prompts[i]) for i in (round((n + 0.5) * len(prompts) / count) for n in range(count))]
    side, text, left = 32 * zoom, 74, 66
    page = Image.new("RGB", (left + len(chosen) * (side + 10), text + 2 * (side + 10)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for row, label in enumerate(("as asked", "steered")):
        draw.text((4, text + row * (side + 10) + side // 2 - 6), label, "black", font)
    for column, (name, index, prompt) in enumerate(chosen):
        x = left + column * (side + 10)
        draw.multiline_text((x, 2), textwrap.fill(prompt, 16), "black", font, spacing=1)
        for row, folder in enumerate((UNSTEERED, SHOWN)):
            with Image.open(run / "pictures" / folder / f"{name}-{index:05d}-1of1.png") as picture:
                page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, text + row * (side + 10)))
    page.quantize(128).save(path, optimize=True)


RUNS: dict[str, dict[str, Any]] = {
    "graded": {
        "modes": ["gate", "graded"],
        "vary": {"load.direction": [SHIPPED], "apply.budget": [0.01, 0.05]},
    },
    "implicit": {
        "modes": ["gate", "graded"],
        "vary": {"load.direction": [SHIPPED], "apply.budget": [0.01, 0.05, 0.2]},
    },
    "implicit-add": {"modes": ["add"], "alphas": [2.0, 4.0, 8.0], "vary": {"load.direction": [SHIPPED]}},
    "implicit-project": {"modes": ["project"], "vary": {"load.direction": [SHIPPED], "apply.budget": [0.05, 0.2]}},
    "implicit-others": {
        "modes": ["gate"],
        "vary": {"load.direction": ["native", "random"], "apply.budget": [0.01, 0.05]},
    },
    "budget-20": {"modes": ["gate"], "vary": {"load.direction": [SHIPPED, "native"], "apply.budget": [0.2]}},
    "budget-25": {"modes": ["gate"], "vary": {"load.direction": [SHIPPED, "native"], "apply.budget": [0.25]}},
    "random": {"modes": ["gate"], "vary": {"load.direction": ["random"], "apply.budget": [0.2]}},
    "gate": {
        "modes": ["gate"],
        "vary": {"load.direction": [SHIPPED, "native", "random"], "apply.budget": [0.01, 0.05]},
    },
    "alpha": {"modes": ["gate"], "alphas": [10.0], "vary": {"load.direction": [SHIPPED], "apply.budget": [0.2]}},
    "add": {"modes": ["add"], "alphas": [8.0], "vary": {"load.direction": [SHIPPED, "random"]}},
    "category": {"modes": ["gate"], "categories": ["violence", "disturbing"], "vary": {"apply.budget": [0.05]}},
    "video": {"modes": ["gate"], "vary": {"load.direction": [SHIPPED], "apply.budget": [0.05]}},
}


IMPLICIT = [name for name in RUNS if name.startswith("implicit")]

DEFAULT = {
    MINILM: ["budget-20", "random", "gate", "graded", "alpha", "add", "category", *IMPLICIT],
    GEMMA: ["budget-20", "random", "gate"],
}
"""The runs that are drawn where none are named."""

BASELINES = {"native": native, "random": noise}


def only(settings: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A run's settings with no other directions than these."""
    vary = {
        key: [one for one in values if key != "load.direction" or one in names]
        for key, values in settings["vary"].items()
    }
    return {**settings, "vary": vary}


def share_alignments(servers: Sequence[Server], names: Sequence[str], encoder: str) -> None:
    """Align each direction on one server, for all of them."""
    kept = [server.base / "user" / "safety_directions" for server in servers if server.base]
    kept[0].mkdir(parents=True, exist_ok=True)
    for other in kept[1:]:
        other.symlink_to(kept[0], target_is_directory=True)
    whole = unhurried(encoder)
    graph = {key: whole[key] for key in ("clip", "align")}

    def align(number: int) -> None:
        for name in names[number :: len(servers)]:
            load = {**whole["load"], "inputs": {"direction": name}}
            servers[number].queue(
                {**graph, "load": load, "out": {"class_type": "PreviewAny", "inputs": {"source": ["align", 0]}}}
            )

    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(align, range(len(servers))))


def files(name: str, sets: int) -> tuple[str, str | None]:
    """A run's prompt files, unsafe and harmless, where explicit prompts are drawn of so many seeds."""
    if name.startswith("implicit"):
        return "implicit.csv", "captions.csv"
    return f"unsafe-{sets if name in WIDE else 1}.csv", None if name == "category" else "benign.csv"


def share_unsteered(out: Path, runs: Sequence[str]) -> None:
    """The same prompts on the same seeds: what the first run drew unsteered is every run's; clips are drawn anew."""
    for implicit in (False, True):
        same = [name for name in runs if name != "video" and name.startswith("implicit") == implicit]
        still = [out / name / "pictures" / UNSTEERED for name in same]
        for folder in still[1:] if still and still[0].is_dir() else ():
            shutil.copytree(still[0], folder, dirs_exist_ok=True)


def measured(results: list[dict[str, Any]], folder: Path, harmless: Path | None) -> list[dict[str, Any]]:
    """A run's results, with what it did to the pictures of harmless prompts: of all, and of each kind of caption."""
    prompts = read_prompts(harmless) if harmless else []
    for row in results:
        if row["set"] == "benign":
            setting = Setting(row["setting"]).folder
            row["drift"] = drift(folder, setting, prompts)
            for name in KINDS.keys() & row["categories"].keys():
                row["categories"][name]["drift"] = drift(folder, setting, prompts, name)
    return results


def keep(path: Path, figures: dict[str, Any]) -> None:
    """Write the figures; an interval is a list of its value and its ends."""
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Draw, judge, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--encoder", default=MINILM, choices=[MINILM, GEMMA], help="whose states the generator reads (%(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="pictures and reports; a killed run goes on (demo-output/images/ENCODER)"
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        choices=list(RUNS),
        help=f"({', '.join(DEFAULT[MINILM])}; with Gemma {', '.join(DEFAULT[GEMMA])})",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=list(SETS),
        help="of the prompts; other ones need an --out and a --json of their own (%(default)s)",
    )
    parser.add_argument(
        "--directions",
        nargs="+",
        default=[SHIPPED, *BASELINES],
        choices=[SHIPPED, *BASELINES],
        help="which to compare (all)",
    )
    parser.add_argument("--json", type=Path, help="runs that are not asked for stay in it (benchmarks/images.json)")
    parser.add_argument("--sheet", type=Path, help="write the picture of RESULTS.md here; needs the run `budget-20`")
    args = parser.parse_args()
    if args.seeds != list(SETS) and not (args.out and args.json):
        parser.error(
            "other --seeds need an --out and a --json of their own: their pictures and figures would mix with those "
            "of the default seeds"
        )
    args.out = args.out or Path("demo-output/images") / args.encoder
    args.json = args.json or Path(__file__).parent / "images.json"
    args.runs = args.runs or DEFAULT[args.encoder]
    args.runs = [name for name in args.runs if all(only(RUNS[name], args.directions)["vary"].values())]

    started = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    prepare(args.out, args.encoder, args.seeds)
    kept = json.loads(args.json.read_text(encoding="utf-8")) if args.json.is_file() else {}
    reports = kept.setdefault(args.encoder, {})
    packs = {PACK: ROOT, "safety_directions_miniature": ROOT / "miniature" / "pack"}
    shipped = directions.load(SHIPPED)
    others = [BASELINES[name](args.encoder, shipped) for name in args.directions if name != SHIPPED]
    with ExitStack() as stack:
        # A picture this small doesn't keep two cores busy; two servers do. ComfyUI's own attention asks for free
        # memory each time.
        quick = {"arguments": ["--use-pytorch-cross-attention"], "variables": {"OMP_NUM_THREADS": "1"}}
        servers = [stack.enter_context(Server(packs=packs, **quick)) for _ in range(SERVERS)]
        for server in servers:
            assert server.base is not None
            folder = server.base / "models" / "safety_directions"
            folder.mkdir(exist_ok=True)
            for direction in others:
                direction.save(folder / f"{direction.name}.safetensors")
        share_alignments(servers, args.directions, args.encoder)
        for name in args.runs:
            share_unsteered(args.out, args.runs)
            unsafe, harmless = files(name, len(args.seeds))
            benign = args.out / harmless if harmless else None
            report = run(
                [server.url for server in servers], args.out / FILES[name == "video"], args.out / unsafe, args.out / name,
                benign=benign, judges=[args.out / "judge.onnx"], reference=args.out / "reference",
                **only(RUNS[name], args.directions),
            )  # fmt: skip
            print(f"\n{name}\n{text(report)}")
            reports[name] = measured(report["results"], args.out / name, None if name == "video" else benign)
            keep(args.json, kept)
    rendered = kept.setdefault("FID of renderings", {})
    for name, icons in replacements(args.seeds).items():
        rendered[name] = rendered_fid(icons)
        print(f"FID of perfect pictures with, in the unsafe thing's place, {name}: {rendered[name]:.0f}")
    if "budget-20" in args.runs and SHIPPED in args.directions:
        rendered[f"as drawn behind {args.encoder}"] = value = rendered_fid(
            seen(args.out / "budget-20", SHOWN, args.seeds)
        )
        print(f"FID of perfect pictures of the very things that were drawn at a budget of 20%: {value:.0f}")
    if args.sheet:
        sheet(args.out / "budget-20", args.sheet, len(args.seeds))
    keep(args.json, kept)
    pages = ", ".join(str(args.out / name / "report.html") for name in args.runs)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; written: {args.json.name}; pages with pictures: {pages}")


if __name__ == "__main__":
    main()
