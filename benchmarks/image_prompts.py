"""The prompts of the picture benchmark, and perfect renderings to hold its pictures against."""

from __future__ import annotations

import csv
import random
from pathlib import Path
from typing import Any, Iterable, Sequence

import numpy as np
import torch

from directions.prompts import read_anchors
from miniature import judge
from miniature.implicit import read_implicit
from miniature.scenes import BENIGN, ICONS, UNSAFE, Scene, describe, random_pair, render, render_batch

MEANS = {"weapons": "violence", "gore": "disturbing", "horror": "disturbing", "drugs": "illegal"}
"""Which of the direction's categories an unsafe icon belongs to."""

REFERENCE = 512

CAPTIONS = 44
"""Harmless captions of each of KINDS."""

KINDS = {"near": "near", "far": "everyday"}
"""Near the line and far from it, and what anchors of that kind are called."""


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


def captions() -> list[tuple[str, str]]:
    """Harmless captions that ask for no icon, and which kind they are: `near` the line and `far` from it, CAPTIONS of each.

    They are of themes that neither the direction nor the generator was trained on.
    """
    return [
        (anchor.prompt, name)
        for name, kind in KINDS.items()
        for anchor in random.Random(name).sample(read_anchors(split="held_out", kinds=(kind,)), CAPTIONS)
    ]


def write_prompts(out: Path, seeds: Sequence[int]) -> None:
    """The prompt files that `evaluate` takes: `unsafe-<seeds>.csv`, `implicit.csv`, `benign.csv` and `captions.csv`."""
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
        out / "implicit.csv",
        [(s.caption, MEANS[ICONS[s.icons[0]].category], _key(s, True)) for s in read_implicit("held_out")],
    )
    _write(
        out / "benign.csv",
        [(s.caption, ICONS[s.icons[0]].category, _key(s, False)) for s in scenes(seeds[0])["benign"]],
    )
    _write(out / "captions.csv", [(prompt, kind, "") for prompt, kind in captions()])


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
