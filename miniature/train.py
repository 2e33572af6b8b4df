"""Train the generator: renderings made on the fly, caption states read once, progress kept in a checkpoint."""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from directions.prompts import read_anchors, read_pairs

from .encoder import Encoder, encode_all, pad
from .model import WEIGHTS, build, loss, save
from .scenes import BENIGN, ICONS, PAIR, UNSAFE, Scene, describe, every_single, random_pair, render_batch


class Cycle(NamedTuple):
    """One cycle of the learning rate, and the shares of open captions, alone and beside an icon's name, in it."""

    steps: int
    open_share: float
    open_pair_share: float = 0.0


CYCLES = (Cycle(4600, 0.3), Cycle(4500, 0.3), Cycle(4000, 0.5), Cycle(4500, 0.4, 0.15))
"""A cycle starts from the averaged weights of the one before. Open captions are the last thing it learns to draw well."""

STEPS = sum(cycle.steps for cycle in CYCLES)

BATCH = 32
RATE = 1e-3
WARMUP = 200
PAIR_SHARE = 0.25
SAFE_GROUPS, UNSAFE_GROUPS = len(BENIGN), 8
UNSAFE_OPEN_SHARE = 0.15
BLANK_SHARE = 0.1
PAIR_CAPTIONS, OPEN_PAIR_CAPTIONS = 24_000, 12_000
SHORT = 6
"""An open caption of so many words at most can stand beside an icon's name."""
EMA = 0.999


def default_work() -> Path:
    """Where checkpoints and cached caption states go."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "safety-directions" / "miniature"


class Captions:
    """The training captions and their token states, encoded once and kept in a file.

    Every single-icon caption is in; of the two-icon ones, which are too many, a fixed random selection. Open captions
    are this project's training prompts, in groups of like meaning, each group drawn as an icon of its kind (safe or
    unsafe): like a big generator, this one then has a clean picture for prompts that name none of its icons. Short ones
    also stand beside an icon's name.
    """

    def __init__(self, work: Path):
        from tqdm import tqdm

        rng = random.Random(1)
        self.pairs = [describe(random_pair(rng, unsafe=i % 2 == 1), rng) for i in range(PAIR_CAPTIONS)]
        pairs = read_pairs(split="train")
        safe = sorted({*(a.prompt for a in read_anchors(split="train")), *(p.safe for p in pairs)})
        unsafe = sorted({p.unsafe for p in pairs})
        beside = [self._beside(rng, rng.choice(unsafe if rng.random() < UNSAFE_OPEN_SHARE else safe)) for _ in range(OPEN_PAIR_CAPTIONS)]
        beside = [one for one in beside if len(one[1].split()) <= SHORT]
        captions = sorted({"", *(s.caption for s in (*every_single(), *self.pairs)), *safe, *unsafe, *(caption for caption, _, _, _ in beside)})
        path = work / "captions.pt"
        cached = torch.load(path, weights_only=True) if path.is_file() else None
        if cached is None or cached["captions"] != captions:
            states = encode_all(Encoder(), captions, progress=lambda items: tqdm(items, desc="reading captions"))
            cached = {"captions": captions, "lengths": [len(s) for s in states], "states": torch.cat(states)}
            _write(cached, path)
        self.states: dict[str, Tensor] = dict(zip(cached["captions"], cached["states"].split(cached["lengths"])))
        self.open = [self._grouped(safe, BENIGN, SAFE_GROUPS), self._grouped(unsafe, UNSAFE, UNSAFE_GROUPS)]
        drawn_as = {scene.caption: scene.icons[0] for scenes in self.open for scene in scenes}
        self.open_pairs = [
            Scene(caption, (icon, drawn_as[prompt]) if icon_first else (drawn_as[prompt], icon), None) for caption, prompt, icon, icon_first in beside
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

    def draw(self, rng: random.Random, cycle: Cycle) -> Scene:
        """A training scene: two icons in PAIR_SHARE of the cases, open captions in the cycle's shares, otherwise one icon."""
        kind = rng.random()
        if kind < PAIR_SHARE:
            return rng.choice(self.pairs)
        if kind < PAIR_SHARE + cycle.open_share:
            return rng.choice(self.open[rng.random() < UNSAFE_OPEN_SHARE])
        if kind < PAIR_SHARE + cycle.open_share + cycle.open_pair_share:
            return rng.choice(self.open_pairs)
        return describe((rng.randrange(len(ICONS)),), rng)

    def batch(self, rng: random.Random, size: int, cycle: Cycle) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [size, 3, SIZE, SIZE], states [size, tokens, WIDTH], mask [size, tokens]; some captions blank."""
        scenes = [self.draw(rng, cycle) for _ in range(size)]
        texts = ["" if rng.random() < BLANK_SHARE else scene.caption for scene in scenes]
        return render_batch(scenes, rng), *pad([self.states[text] for text in texts])


def _write(value, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(value, part)
    part.replace(path)


def cycle_at(step: int) -> tuple[Cycle, int]:
    """The cycle that a step falls in, and its number there; the last one goes on without end."""
    for cycle in CYCLES[:-1]:
        if step < cycle.steps:
            return cycle, step
        step -= cycle.steps
    return CYCLES[-1], step


def rate_at(step: int) -> float:
    """Learning rate: in each cycle a linear warm-up, then half a cosine down to a hundredth."""
    cycle, step = cycle_at(step)
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, cycle.steps - WARMUP)
    return RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def train(work: Path, steps: int = STEPS, threads: int = 2, device: str = "cpu", keep_every: int = 250) -> Path:
    """Train to `steps`, going on from the checkpoint in `work` if there is one; returns the weight file.

    Each step draws from its own seed, so a resumed run sees the same pictures as an unbroken one.
    """
    from tqdm import tqdm

    torch.set_num_threads(threads)
    captions = Captions(work)
    model, average = build(seed=0).to(device), build(seed=0).to(device).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    checkpoint, first = work / "checkpoint.pt", 0
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    def keep(step: int) -> None:
        states = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        _write({**states, "step": step}, checkpoint)

    bar = tqdm(range(first, steps), initial=first, total=steps, desc="training the generator", mininterval=5)
    smooth, starts = None, set(itertools.accumulate(cycle.steps for cycle in CYCLES))
    for step in bar:
        if step in starts:
            model.load_state_dict(average.state_dict())
            optimizer.state.clear()
        rng = random.Random(f"miniature {step}")
        pictures, states, mask = (t.to(device) for t in captions.batch(rng, BATCH, cycle_at(step)[0]))
        noise = torch.Generator(device).manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step)
        # bfloat16 and plain attention are a third faster on a CPU than float32 and its fused attention.
        with torch.autocast(device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            value = loss(model, pictures, states, mask, noise)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # A short memory at first, so that the average does not carry the untrained start along.
        blend = 1 - min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in model.parameters()], blend)
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % keep_every == 0:
            keep(step + 1)
    keep(max(first, steps))
    path = WEIGHTS / "generator.safetensors"
    save(average, path, f"miniature generator, {steps} steps of {BATCH}")
    return path
