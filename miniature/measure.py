"""How well the generator draws what was asked: fidelity by kind of prompt, and FID, both by the judge."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from directions.evaluate.figures import CONFIDENT
from directions.prompts import read_anchors

from . import judge as judging
from .encoder import Encoder
from .model import sample
from .scenes import BENIGN, FRAMES, ICONS, SIZE, UNSAFE, Scene, describe, film_batch, random_pair, render_batch


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


def draw(
    model: nn.Module,
    encoder: Encoder,
    scenes: Sequence[Scene],
    seed: int = 0,
    batch: int = 32,
    video: bool = False,
    **settings,
) -> Tensor:
    """Generated pictures [scenes, 3, SIZE, SIZE], or clips [scenes, 3, FRAMES, SIZE, SIZE], about -1..1."""
    empty = encoder([""])[0][0]
    parts = []
    for start in range(0, len(scenes), batch):
        states, mask = encoder([scene.caption for scene in scenes[start : start + batch]])
        parts.append(
            sample(model, states, mask, empty, seed=seed + start, frames=FRAMES if video else None, **settings)
        )
    return torch.cat(parts)


def frames(clips: Tensor) -> Tensor:
    """Clips [n, 3, frames, height, width] as pictures [n * frames, 3, height, width]; pictures stay what they are."""
    return clips.transpose(1, 2).flatten(0, 1) if clips.dim() == 5 else clips


def travel(clips: Tensor) -> Tensor:
    """How far, in pixels, what differs from the ground moves from a clip's first frame to its last: [n]."""
    ground = clips[..., 0, 0].median(-1).values[..., None, None, None]
    seen = (clips - ground).abs().sum(1)
    seen = torch.where(seen > 0.3, seen, 0)
    weight = seen / seen.sum((-2, -1), keepdim=True).clamp_min(1e-6)
    places = torch.arange(SIZE, dtype=torch.float32)
    centre = torch.stack([(weight.sum(-2) * places).sum(-1), (weight.sum(-1) * places).sum(-1)], -1)
    return (centre[:, -1] - centre[:, 0]).norm(dim=-1)


def measure(
    model: nn.Module, judge: judging.Judge, encoder: Encoder, count: int = 200, video: bool = False
) -> dict[str, dict[str, float]]:
    """Per kind of prompt: `asked` (all asked-for icons found), `unsafe` (an unsafe one is), `harmless` (clearly so),
    `fid` to renderings.

    Everyday captions are this project's harmless prompts of themes that were not trained on. They ask for no icon: what
    is drawn of them is the best that a prompt which was steered to look like one can become. Their FID is to harmless icons.
    Of clips each frame counts, and `travel` is how many pixels things move, `rendered` how many they should.
    """
    table = {}
    kinds = prompts(count)
    everyday = [
        Scene(anchor.prompt, (), None)
        for anchor in random.Random("everyday").sample(read_anchors(split="held_out"), count)
    ]
    for kind, scenes, shown in [
        *((kind, scenes, scenes) for kind, scenes in kinds.items()),
        ("everyday captions", everyday, kinds["benign"]),
    ]:
        drawn, real = (
            draw(model, encoder, scenes, video=video),
            (film_batch if video else render_batch)(shown, random.Random(kind)),
        )
        verdict, wanted = judging.look(judge, frames(drawn)), judging.look(judge, frames(real))
        asked = [scene for scene in scenes for _ in range(FRAMES if video else 1)]
        unsafe = verdict.unsafe > judging.PRESENT
        table[kind] = {
            **({"asked": (verdict.asked(asked) > judging.PRESENT).float().mean().item()} if scenes is shown else {}),
            "unsafe": unsafe.float().mean().item(),
            "harmless": ((verdict.icons[:, BENIGN].amax(1) > CONFIDENT) & ~unsafe).float().mean().item(),
            "fid": judging.fid(verdict.features, wanted.features),
            **({"travel": travel(drawn).mean().item(), "rendered": travel(real).mean().item()} if video else {}),
        }
    return table


def sheet(seed: int = 0) -> list[Scene]:
    """One scene per icon, then as many pairs as fill two rows, for looking at."""
    rng = random.Random(f"sheet {seed}")
    singles = [describe((index,), rng) for index in range(len(ICONS))]
    return singles + [describe(random_pair(rng, unsafe=i % 2 == 0), rng) for i in range(29)]
