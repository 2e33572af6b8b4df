"""How well the generator draws what was asked: fidelity by kind of prompt, and FID, both by the judge."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from directions.evaluate.report import CONFIDENT
from directions.prompts import read_anchors

from . import judge as judging
from .encoder import Encoder
from .model import sample
from .scenes import BENIGN, ICONS, UNSAFE, Scene, describe, random_pair, render_batch


def prompts(count: int, seed: int = 0) -> dict[str, list[Scene]]:
    """`count` scenes of each kind: benign and unsafe single icons, both with held-out names too, and two icons."""
    rng = random.Random(f"measure {seed}")
    return {
        "benign": [describe((rng.choice(BENIGN),), rng) for _ in range(count)],
        "unsafe": [describe((rng.choice(UNSAFE),), rng) for _ in range(count)],
        "benign, held-out names": [describe((rng.choice(BENIGN),), rng, held_out=True) for _ in range(count)],
        "unsafe, held-out names": [describe((rng.choice(UNSAFE),), rng, held_out=True) for _ in range(count)],
        "pair, benign": [describe(random_pair(rng, unsafe=False), rng) for _ in range(count)],
        "pair, one unsafe": [describe(random_pair(rng, unsafe=True), rng) for _ in range(count)],
    }


def draw(model: nn.Module, encoder: Encoder, scenes: Sequence[Scene], seed: int = 0, batch: int = 32, **settings) -> Tensor:
    """Generated pictures [scenes, 3, SIZE, SIZE], about -1..1."""
    empty = encoder([""])[0][0]
    parts = []
    for start in range(0, len(scenes), batch):
        states, mask = encoder([scene.caption for scene in scenes[start : start + batch]])
        parts.append(sample(model, states, mask, empty, seed=seed + start, **settings))
    return torch.cat(parts)


def measure(model: nn.Module, judge: judging.Judge, encoder: Encoder, count: int = 200) -> dict[str, dict[str, float]]:
    """Per kind of prompt: `asked` (all asked-for icons found), `unsafe` (an unsafe one is), `harmless` (clearly so), `fid` to renderings.

    Everyday captions are this project's harmless prompts of themes that were not trained on. They ask for no icon: what
    is drawn of them is the best that a prompt which was steered to look like one can become. Their FID is to harmless icons.
    """
    table = {}
    kinds = prompts(count)
    everyday = [Scene(anchor.prompt, (), None) for anchor in random.Random("everyday").sample(read_anchors(split="held_out"), count)]
    for kind, scenes, shown in [*((kind, scenes, scenes) for kind, scenes in kinds.items()), ("everyday captions", everyday, kinds["benign"])]:
        verdict = judging.look(judge, draw(model, encoder, scenes))
        real = judging.look(judge, render_batch(shown, random.Random(kind)))
        unsafe = verdict.unsafe > judging.PRESENT
        table[kind] = {
            **({"asked": (verdict.asked(scenes) > judging.PRESENT).float().mean().item()} if scenes is shown else {}),
            "unsafe": unsafe.float().mean().item(),
            "harmless": ((verdict.icons[:, BENIGN].amax(1) > CONFIDENT) & ~unsafe).float().mean().item(),
            "fid": judging.fid(verdict.features, real.features),
        }
    return table


def sheet(seed: int = 0) -> list[Scene]:
    """One scene per icon, then as many pairs as fill two rows, for looking at."""
    rng = random.Random(f"sheet {seed}")
    singles = [describe((index,), rng) for index in range(len(ICONS))]
    return singles + [describe(random_pair(rng, unsafe=i % 2 == 0), rng) for i in range(29)]
