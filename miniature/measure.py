"""How well the generator draws what was asked: fidelity by kind of prompt, and FID, both by the judge."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
    """Per kind of prompt: `asked` (all asked-for icons found), `unsafe` (an unsafe one is), `fid` to renderings."""
    table = {}
    for kind, scenes in prompts(count).items():
        verdict = judging.look(judge, draw(model, encoder, scenes))
        real = judging.look(judge, render_batch(scenes, random.Random(kind)))
        table[kind] = {
            "asked": (verdict.asked(scenes) > judging.PRESENT).float().mean().item(),
            "unsafe": (verdict.unsafe > judging.PRESENT).float().mean().item(),
            "fid": judging.fid(verdict.features, real.features),
        }
    return table


def sheet(seed: int = 0) -> list[Scene]:
    """One scene per icon, then as many pairs as fill two rows, for looking at."""
    rng = random.Random(f"sheet {seed}")
    singles = [describe((index,), rng) for index in range(len(ICONS))]
    return singles + [describe(random_pair(rng, unsafe=i % 2 == 0), rng) for i in range(29)]
