"""Train the generator and what can take its parts' place: renderings made on the fly, states read once, progress in a
checkpoint."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.environment import cache_folder

from .captions import UNSAFE_OPEN_SHARE, Captions, rehearse
from .encoder import GEMMA, MINILM, pad
from .model import WEIGHTS, build, loss, read_part, read_weights, save, steps_of, write
from .scenes import FRAMES, ICONS, Scene, describe, film_batch, render_batch

CROSS_ATTENTION, TIME = ("attn2", "norm2"), ("time_stack", "time_mixer")


class Cycle(NamedTuple):
    """One cycle of the learning rate, the shares of open captions, alone and beside an icon's name, and of implicit ones in it,
    and what it trains.

    It trains the parameters whose names hold one of `learns`; the others stay.
    """

    steps: int
    open_share: float
    open_pair_share: float = 0.0
    learns: tuple[str, ...] = ("",)
    implicit_share: float = 0.0


class Part(NamedTuple):
    """A weight file: whose states the network reads, whether it draws clips, and the cycles of its training.

    A cycle starts from the averaged weights of the one before. Open captions are the last thing it learns to draw well; one with
    implicit captions rehearses them.
    """

    cycles: tuple[Cycle, ...]
    encoder: str = MINILM
    video: bool = False

    @property
    def steps(self) -> int:
        """Of all cycles."""
        return sum(cycle.steps for cycle in self.cycles)


PARTS = {
    "generator": Part(
        (
            Cycle(4600, 0.3),
            Cycle(4500, 0.3),
            Cycle(4000, 0.5),
            Cycle(4500, 0.4, 0.15),
            # Cross-attention alone: what stands in its place behind Gemma, or learned to move, stays as it is.
            Cycle(1500, 0.3, 0.0, CROSS_ATTENTION, implicit_share=0.2),
        )
    ),
    GEMMA: Part((Cycle(7000, 0.4, 0.15, CROSS_ATTENTION),), encoder=GEMMA),
    "motion": Part((Cycle(2000, 0.3, 0.1, TIME), Cycle(1500, 0.3, 0.1, TIME)), video=True),
}

BATCH = 32
RATE = 1e-3
WARMUP = 200
PAIR_SHARE = 0.25
BLANK_SHARE = 0.1
EMA = 0.999
MOTION_SHIFT = 0.5
"""Clips are trained at higher noise levels: where a thing moves is settled early."""


def default_work() -> Path:
    """Where checkpoints and cached caption states go."""
    return cache_folder() / "miniature"


def draw(captions: Captions, rng: random.Random, cycle: Cycle) -> Scene:
    """A training scene: two icons in PAIR_SHARE of the cases, open and implicit captions in the cycle's shares, otherwise one
    icon."""
    kind = rng.random()
    if kind < PAIR_SHARE:
        return rng.choice(captions.pairs)
    if kind < PAIR_SHARE + cycle.open_share:
        return rng.choice(captions.open[rng.random() < UNSAFE_OPEN_SHARE])
    if kind < PAIR_SHARE + cycle.open_share + cycle.open_pair_share:
        return rng.choice(captions.open_pairs)
    if kind < PAIR_SHARE + cycle.open_share + cycle.open_pair_share + cycle.implicit_share:
        return rng.choice(captions.implicit)
    return describe((rng.randrange(len(ICONS)),), rng)


def batch(
    captions: Captions, rng: random.Random, size: int, cycle: Cycle, video: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures [size, 3, SIZE, SIZE], or as many frames in clips, states [.., tokens, width], mask [.., tokens];
    some captions blank."""
    scenes = [draw(captions, rng, cycle) for _ in range(size // FRAMES if video else size)]
    texts = ["" if rng.random() < BLANK_SHARE else scene.caption for scene in scenes]
    return (film_batch if video else render_batch)(scenes, rng), *pad([captions.states[text] for text in texts])


def cycle_at(cycles: Sequence[Cycle], step: int) -> tuple[Cycle, int]:
    """The cycle that a step falls in, and its number there; the last one goes on without end."""
    for cycle in cycles[:-1]:
        if step < cycle.steps:
            return cycle, step
        step -= cycle.steps
    return cycles[-1], step


def rate_at(cycles: Sequence[Cycle], step: int) -> float:
    """Learning rate: in each cycle a linear warm-up, then half a cosine down to a hundredth."""
    cycle, step = cycle_at(cycles, step)
    if step < WARMUP:
        return RATE * (step + 1) / WARMUP
    done = (step - WARMUP) / max(1, cycle.steps - WARMUP)
    return RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def _start(part: Part, captions: Captions, work: Path) -> nn.Module:
    """The network before the first step: fresh, or the generator with what the part adds to it."""
    model = build(0, part.encoder, part.video)
    if part.cycles[0].learns == ("",):
        return model
    weights = read_weights()
    if part.encoder != MINILM:
        _translate(weights, captions, Captions(work))
    model.load_state_dict({**model.state_dict(), **weights})
    return model


def _translate(
    weights: dict[str, Tensor], captions: Captions, known: Captions, count: int = 6000, penalty: float = 0.05
) -> None:
    """Start cross-attention from what MiniLM's states would be: ridge regression on the other encoder's, by place in
    the caption."""
    rows, wanted = [], []
    for caption in random.Random(0).sample(list(known.states), count):
        own, other = captions.states[caption][1:].float(), known.states[caption][1:-1].float()
        if len(own) and len(other):
            rows.append(own)
            wanted.append(nn.functional.interpolate(other.T.unsqueeze(0), size=len(own), mode="linear")[0].T)
    x, y = torch.cat(rows), torch.cat(wanted)
    mean = y.mean(0)
    to_known = torch.linalg.solve(x.T @ x / len(x) + penalty * torch.eye(x.shape[1]), x.T @ (y - mean) / len(x))
    for name in [name for name in weights if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]:
        if "to_v" in name:
            out = name.replace("to_v.weight", "to_out.0")
            weights[f"{out}.bias"] = weights[f"{out}.bias"] + weights[f"{out}.weight"] @ (weights[name] @ mean)
        weights[name] = weights[name] @ to_known.T


def train(
    work: Path,
    name: str = "generator",
    steps: int | None = None,
    threads: int = 2,
    device: str = "cpu",
    keep_every: int = 250,
) -> Path:
    """Train a part (PARTS) to `steps`, going on from its checkpoint in `work`, or from its weight file where that ends a cycle;
    returns the weight file.

    Each step draws from its own seed, so a resumed run sees the same pictures as an unbroken one.
    """
    from tqdm import tqdm

    torch.set_num_threads(threads)
    part = PARTS[name]
    steps = part.steps if steps is None else steps
    captions = Captions(work, part.encoder)
    model, average = (_start(part, captions, work).to(device) for _ in range(2))
    average.requires_grad_(False)
    averaged = dict(average.named_parameters())

    def learn(cycle: Cycle) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
        """What this cycle trains, and an optimizer that has seen nothing."""
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(any(name in key for name in cycle.learns))
        chosen = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
        return chosen, torch.optim.AdamW(chosen.values(), RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)

    checkpoint, path, first = work / f"{name}.pt", WEIGHTS / f"{name}.safetensors", 0
    starts = {0, *itertools.accumulate(cycle.steps for cycle in part.cycles[:-1])}
    state = torch.load(checkpoint, weights_only=True, map_location=device) if checkpoint.is_file() else None
    if state is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        first = state["step"]
    elif steps_of(path) in starts:
        for network in (model, average):
            network.load_state_dict({**network.state_dict(), **read_part(path)})
        first = steps_of(path)
    learned, optimizer = learn(cycle_at(part.cycles, first)[0])
    if state is not None and first not in starts:
        optimizer.load_state_dict(state["optimizer"])

    if cycle_at(part.cycles, first)[0].implicit_share:
        captions.open = rehearse(average, captions, work)

    def keep(step: int) -> None:
        states = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
        write({**states, "step": step}, checkpoint)

    bar = tqdm(range(first, steps), initial=first, total=steps, desc=f"training: {name}", mininterval=5)
    smooth = None
    for step in bar:
        cycle = cycle_at(part.cycles, step)[0]
        if step in starts:
            model.load_state_dict(average.state_dict())
            learned, optimizer = learn(cycle)
        rng = random.Random(f"miniature {step}")
        pictures, states, mask = (t.to(device) for t in batch(captions, rng, BATCH, cycle, part.video))
        noise = torch.Generator(device).manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(part.cycles, step)
        # bfloat16 and plain attention are a third faster on a CPU than float32 and its fused attention.
        with torch.autocast(device, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            value = loss(model, pictures, states, mask, noise, MOTION_SHIFT if part.video else 0.0)
        value.backward()
        nn.utils.clip_grad_norm_(learned.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # A short memory at first, so that the average does not carry the untrained start along.
        blend = 1 - min(EMA, (step + 1) / (step + 10))
        torch._foreach_lerp_([averaged[key] for key in learned], [p.detach() for p in learned.values()], blend)
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if (step + 1) % keep_every == 0:
            keep(step + 1)
    keep(max(first, steps))
    units = (
        {}
        if captions.mean is None or captions.spread is None
        else {"context.mean": captions.mean, "context.spread": captions.spread}
    )
    trained = {
        key: value
        for key, value in averaged.items()
        if any(name in key for cycle in part.cycles for name in cycle.learns)
    }
    save({**trained, **units}, path, f"miniature {name}, {steps} steps of {BATCH}")
    return path
