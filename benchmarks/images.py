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
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
import torch

import directions
from directions.evaluate import run
from directions.evaluate.settings import UNSTEERED
from harness.server import PACK, ROOT, Server
from miniature import judge
from miniature.encoder import GEMMA, MINILM
from miniature.scenes import BENIGN, ICONS, UNSAFE, Scene, describe, random_pair, render, render_batch

from .baselines import native, noise

SHIPPED = "smollm2-135m-instruct"
MEANS = {"weapons": "violence", "gore": "disturbing", "horror": "disturbing", "drugs": "illegal"}
"""Which of the direction's categories an unsafe icon belongs to."""

FILES = {False: "workflow.json", True: "video.json"}

REFERENCE = 512
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


def scenes(seed: int = 0) -> dict[str, list[Scene]]:
    """Fresh prompts: of every icon with its held-out name and with others, and two-icon scenes; half have a ground.

    `unsafe`: 88; `benign`: 61; `two`: 48 of an unsafe icon beside a harmless one.
    """
    rng = random.Random(f"images {seed}")
    unsafe = [describe((i,), rng, held_out=n % 2 == 0) for i in UNSAFE for n in range(4)]
    benign = [describe((i,), rng, held_out=n % 2 == 0) for n, i in enumerate(BENIGN)]
    both = [describe(random_pair(rng, unsafe=True), rng) for _ in range(48)]
    return {"unsafe": unsafe, "benign": benign, "two": both}


def _key(scene: Scene, unsafe: bool) -> str:
    return ";".join(ICONS[index].key for index in scene.icons if ICONS[index].unsafe == unsafe)


def _write(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("prompt", "categories", "expected"), *rows])


def asked(seeds: Sequence[int]) -> list[Scene]:
    """The unsafe prompts of these seeds, in the order in which they are drawn."""
    return [scene for seed in seeds for drawn in [scenes(seed)] for scene in (*drawn["unsafe"], *drawn["two"])]


def rendered_fid(wanted: Sequence[Sequence[int]]) -> float:
    """FID of perfect pictures of these icons, one list of them per picture: what the choice of things alone comes to."""
    rng, looking = random.Random("rendered"), judge.load()
    pictures = render_batch([describe(icons, rng) for icons in wanted], rng)
    return judge.fid(*(judge.look(looking, each).features for each in (pictures, torch.from_numpy(reference()))))


def replacements(seeds: Sequence[int]) -> dict[str, list[list[int]]]:
    """What perfect steering could draw, as icons per prompt, by what takes the unsafe thing's place: nothing where a
    harmless thing
    is there already, a harmless thing drawn anew for every prompt, or each unsafe thing's own harmless one."""
    rng = random.Random("replacements")
    own = {index: rng.choice(BENIGN) for index in UNSAFE}
    out: dict[str, list[list[int]]] = {"nothing": [], "any harmless thing": [], "its own harmless thing": []}
    for scene in asked(seeds):
        kept = [index for index in scene.icons if not ICONS[index].unsafe]
        (unsafe,) = set(scene.icons) - set(kept)
        anything = rng.choice([index for index in BENIGN if index not in kept])
        for name, instead in (
            ("nothing", [] if kept else [anything]),
            ("any harmless thing", [anything]),
            ("its own harmless thing", [own[unsafe]]),
        ):
            out[name].append(list(dict.fromkeys([*kept, *instead])))
    return out


def seen(run: Path, setting: str, seeds: Sequence[int]) -> list[list[int]]:
    """What the judge takes a run's pictures for: of each the likeliest icons, as many as its prompt asks for."""
    from PIL import Image

    wanted, looking, out = asked(seeds), judge.load(), []
    for number, scene in enumerate(wanted):
        with Image.open(run / "pictures" / setting / f"unsafe-{number:05d}-1of1.png") as image:
            picture = torch.from_numpy(np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 127.5 - 1)
        out.append(judge.look(looking, picture[None]).icons[0].topk(len(scene.icons)).indices.tolist())
    return out


def reference() -> Any:
    """What FID compares with, every harmless icon alone in turn: float32 [REFERENCE, 3, SIZE, SIZE] in -1..1"""
    rng = random.Random("reference")
    return np.stack([render(describe((BENIGN[number % len(BENIGN)],), rng), rng) for number in range(REFERENCE)])


def prepare(out: Path, encoder: str, seeds: Sequence[int]) -> None:
    """The prompts, the workflows, the judge and the reference renderings that `evaluate` takes."""
    from PIL import Image

    for some in (seeds, seeds[:1]):
        # "two" expects what must stay: the harmless icon.
        rows = [
            ("two", _key(s, False))
            if len(s.icons) > 1
            else (f"single, {MEANS[ICONS[s.icons[0]].category]}", _key(s, True))
            for s in asked(some)
        ]
        _write(out / f"unsafe-{len(some)}.csv", [(s.caption, *row) for s, row in zip(asked(some), rows)])
    _write(
        out / "benign.csv",
        [(s.caption, ICONS[s.icons[0]].category, _key(s, False)) for s in scenes(seeds[0])["benign"]],
    )
    for video in (False, True):
        (out / FILES[video]).write_text(json.dumps(workflow(encoder, video)), encoding="utf-8")
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


DEFAULT = {MINILM: ["budget-20", "random", "gate", "alpha", "add", "category"], GEMMA: ["budget-20", "random", "gate"]}
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
    whole = workflow(encoder)
    graph = {key: whole[key] for key in ("clip", "align")}

    def align(number: int) -> None:
        for name in names[number :: len(servers)]:
            load = {**whole["load"], "inputs": {"direction": name}}
            servers[number].queue(
                {**graph, "load": load, "out": {"class_type": "PreviewAny", "inputs": {"source": ["align", 0]}}}
            )

    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(align, range(len(servers))))


def share_unsteered(out: Path, runs: Sequence[str]) -> None:
    """The same prompts on the same seeds: what the first run drew unsteered is every run's; clips are drawn anew."""
    still = [out / name / "pictures" / UNSTEERED for name in runs if name != "video"]
    for folder in still[1:] if still and still[0].is_dir() else ():
        shutil.copytree(still[0], folder, dirs_exist_ok=True)


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
    from directions.evaluate.report import text

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
            prompts = args.out / f"unsafe-{len(args.seeds) if name in WIDE else 1}.csv"
            report = run(
                [server.url for server in servers], args.out / FILES[name == "video"], prompts, args.out / name,
                benign=None if name == "category" else args.out / "benign.csv", judges=[args.out / "judge.onnx"],
                reference=args.out / "reference", **only(RUNS[name], args.directions),
            )  # fmt: skip
            print(f"\n{name}\n{text(report)}")
            reports[name] = report["results"]
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
    args.json.write_text(json.dumps(kept, indent=1, default=lambda value: value._asdict()) + "\n", encoding="utf-8")
    pages = ", ".join(str(args.out / name / "report.html") for name in args.runs)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; written: {args.json.name}; pages with pictures: {pages}")


if __name__ == "__main__":
    main()
