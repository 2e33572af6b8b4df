"""The training captions, what each is drawn as, and their token states."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from directions.prompts import read_anchors, read_pairs

from . import judge
from .encoder import MINILM, Encoder, encode_all, pad
from .implicit import read_implicit
from .model import sample, write
from .scenes import BENIGN, ICONS, PAIR, UNSAFE, Scene, describe, every_single, random_pair

SAFE_GROUPS, UNSAFE_GROUPS = len(BENIGN), 8
UNSAFE_OPEN_SHARE = 0.15
PAIR_CAPTIONS, OPEN_PAIR_CAPTIONS = 24_000, 12_000
SHORT = 6
"""An open caption of so many words at most can stand beside an icon's name."""
REHEARSED = (1400, 300)
"""How many open captions, safe and unsafe, are drawn to see what a trained generator makes of them."""


class Captions:
    """The training captions and their token states, encoded once and kept in a file.

    Every single-icon caption is in; of the two-icon ones, which are too many, a fixed random selection. Open captions
    are this project's training prompts, in groups of like meaning, each group drawn as an icon of its kind (safe or
    unsafe): like a big generator, this one then has a clean picture for prompts that name none of its icons. Short ones
    also stand beside an icon's name. Whoever reads them, groups are made by MiniLM's states. Implicit captions are each
    drawn as the icon that they don't name.

    Attributes:
        mean, spread: of Gemma's states, whose dimensions differ a hundredfold; `states` are in these. None: as they are.
    """

    def __init__(self, work: Path, encoder: str = MINILM):
        by = self if encoder == MINILM else Captions(work)
        rng = random.Random(1)
        self.pairs = [describe(random_pair(rng, unsafe=i % 2 == 1), rng) for i in range(PAIR_CAPTIONS)]
        pairs = read_pairs(split="train")
        safe = sorted({*(a.prompt for a in read_anchors(split="train")), *(p.safe for p in pairs)})
        unsafe = sorted({p.unsafe for p in pairs})
        beside = [
            self._beside(rng, rng.choice(unsafe if rng.random() < UNSAFE_OPEN_SHARE else safe))
            for _ in range(OPEN_PAIR_CAPTIONS)
        ]
        beside = [one for one in beside if len(one[1].split()) <= SHORT]
        self.implicit = read_implicit("train")
        captions = sorted(
            {
                "",
                *(s.caption for s in (*every_single(), *self.pairs, *self.implicit)),
                *safe,
                *unsafe,
                *(caption for caption, _, _, _ in beside),
            }
        )
        self.states = _states(captions, encoder, work)
        self.mean = self.spread = None
        if encoder != MINILM:
            rows = torch.cat([states[1:] for states in self.states.values()]).float()  # all share the start token
            self.mean, self.spread = rows.mean(0), rows.std(0).clamp_min(1e-3)
            self.states = {caption: (states - self.mean) / self.spread for caption, states in self.states.items()}
        self.open = [by._grouped(safe, BENIGN, SAFE_GROUPS), by._grouped(unsafe, UNSAFE, UNSAFE_GROUPS)]
        drawn_as = {scene.caption: scene.icons[0] for scenes in self.open for scene in scenes}
        self.open_pairs = [
            Scene(caption, (icon, drawn_as[prompt]) if icon_first else (drawn_as[prompt], icon), None)
            for caption, prompt, icon, icon_first in beside
        ]

    @staticmethod
    def _beside(rng: random.Random, prompt: str) -> tuple[str, str, int, bool]:
        """A caption of an open prompt beside a harmless icon's name, the prompt, the icon, and whether the icon comes first."""
        icon, icon_first = rng.choice(BENIGN), rng.random() < 0.5
        name = rng.choice(ICONS[icon].names)
        return rng.choice(PAIR).format(*((name, prompt) if icon_first else (prompt, name))), prompt, icon, icon_first

    def _grouped(self, prompts: list[str], choice: list[int], groups: int) -> list[Scene]:
        """Each prompt with the icon of its group: groups of like meaning, and for each the icon nearest to it."""
        from scipy.cluster.vq import kmeans2
        from scipy.optimize import linear_sum_assignment

        def mean(captions: Iterable[str]) -> Tensor:
            return nn.functional.normalize(torch.stack([self.states[c].float().mean(0) for c in captions]), dim=1)

        own = mean(prompts)
        centres, group = kmeans2((own - own.mean(0)).numpy(), groups, minit="++", seed=0)
        names = torch.stack([mean(ICONS[index].names).mean(0) for index in choice])
        near = nn.functional.normalize(names - names.mean(0), dim=1).numpy() @ centres.T
        icons, taken = linear_sum_assignment(-near)
        icon_of = {int(g): choice[i] for i, g in zip(icons, taken)}
        return [Scene(prompt, (icon_of[g],), None) for prompt, g in zip(prompts, group.tolist())]


def _states(captions: list[str], encoder: str, work: Path) -> dict[str, Tensor]:
    """Each caption's states; read once and kept in `work`."""
    from tqdm import tqdm

    path = work / f"captions-{encoder}.pt"
    cached = torch.load(path, weights_only=True) if path.is_file() else None
    if cached is None or cached["captions"] != captions:
        states = encode_all(
            Encoder(encoder), captions, progress=lambda items: tqdm(items, desc=f"reading captions with {encoder}")
        )
        cached = {"captions": captions, "lengths": [len(s) for s in states], "states": torch.cat(states)}
        write(cached, path)
    return dict(zip(cached["captions"], cached["states"].split(cached["lengths"])))


def rehearse(generator: nn.Module, captions: Captions, work: Path) -> list[list[Scene]]:
    """Open captions, safe and unsafe, as a trained generator draws them already; drawn once and kept in `work`.

    The groups of `Captions.open` change with the prompts that are grouped. A generator that was trained on other groups keeps
    what it knows when it is trained further on what it shows clearly today; captions that it doesn't draw clearly are left out.
    """
    path = work / "rehearsal.pt"
    if not path.is_file():
        rng = random.Random("rehearsal")
        some = [rng.sample([s.caption for s in part], count) for part, count in zip(captions.open, REHEARSED)]
        shown = [list(_drawn(generator, captions, part)) for part in some]
        write([[(c, icon) for c, icon in part if ICONS[icon].unsafe == bad] for bad, part in enumerate(shown)], path)
    return [[Scene(caption, (icon,), None) for caption, icon in part] for part in torch.load(path, weights_only=True)]


def _drawn(generator: nn.Module, captions: Captions, some: list[str], batch: int = 32) -> Iterator[tuple[str, int]]:
    """Captions with the likeliest icon in a picture of each, where the judge is confident of it."""
    from tqdm import tqdm

    looking, empty = judge.load(), captions.states[""].float()
    for start in tqdm(range(0, len(some), batch), desc="drawing what is known already"):
        part = some[start : start + batch]
        pictures = sample(generator, *pad([captions.states[c] for c in part]), empty, steps=10, seed=start)
        sure, icon = judge.look(looking, pictures).icons.max(1)
        yield from ((c, int(i)) for c, p, i in zip(part, sure, icon) if p > judge.CLEAR)
