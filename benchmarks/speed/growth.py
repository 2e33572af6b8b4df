"""Steering and aligning as they grow, beside the law that they should follow; drawn to docs/speed-growth.png."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import torch

from directions.maps import METHODS
from harness.server import ROOT

from .clock import Row, in_turn
from .comfyui import pack
from .steering import made_up

PLOT = ROOT / "docs" / "speed-growth.png"


class Curve(NamedTuple):
    """Milliseconds at sizes, and the power of the size that they should grow with at most."""

    title: str
    sizes: Sequence[int]
    power: float
    task: Callable[[int], Callable[[], Any]]


def curves() -> list[Curve]:
    """What is measured: the tasks make their input before the clock runs."""
    return [
        Curve("steer: tokens (width 4096)", (77, 256, 1024, 4096), 1, lambda size: _steer(size, 4096, 6)),
        Curve("steer: width (256 tokens)", (768, 2048, 4096, 8192), 1, lambda size: _steer(256, size, 6)),
        Curve("steer: categories (256 x 4096)", (1, 2, 6, 20), 1, lambda size: _steer(256, 4096, size)),
        Curve("ridge: anchors (width 768)", (500, 2000, 5000, 20000), 1, lambda size: _ridge(size, 768)),
        Curve("ridge: width (2000 anchors)", (768, 1536, 3072, 6144), 1, lambda size: _ridge(2000, size)),
    ]


def _steer(tokens: int, width: int, categories: int) -> Callable[[], Any]:
    encoders = pack().nodes.encoders
    names = [f"category-{i}" for i in range(categories)]
    aligned, states = made_up(width, tokens=tokens, categories=names), torch.randn(1, tokens, width)
    settings = pack().directions.SteeringSettings("add", 5.0, tuple(names), 0.01)
    return lambda: encoders.steer_conditioning([[states, {}]], aligned, settings)


def _ridge(anchors: int, width: int) -> Callable[[], Any]:
    source, target = torch.randn(anchors, 576), torch.randn(anchors, width)
    return lambda: METHODS["ridge"](source, target)


def measure() -> Iterator[Row]:
    """The growth between the two largest sizes, as a power of the size."""
    drawn = []
    with torch.inference_mode():
        for curve in curves():
            seconds = in_turn({str(size): curve.task(size) for size in curve.sizes}, 3)
            times = [median(seconds[str(size)]) * 1e3 for size in curve.sizes]
            drawn.append((curve, times))
            power = torch.tensor(times[-1] / times[-2]).log2() / torch.tensor(curve.sizes[-1] / curve.sizes[-2]).log2()
            each = ", ".join(f"{size}: {value:.3g} ms" for size, value in zip(curve.sizes, times))
            yield Row(f"{curve.title}, power", power.item(), detail=f"{each}; law {curve.power:g}")
    _draw(drawn, PLOT)


def _draw(drawn: Sequence[tuple[Curve, list[float]]], path: Path) -> None:
    """A panel per curve, both axes logarithmic: measured points, and a line that has the law's slope from the last."""
    from PIL import Image, ImageDraw

    side, margin = 300, 44
    picture = Image.new("RGB", (side * len(drawn), side), "white")
    pen = ImageDraw.Draw(picture)
    for panel, (curve, times) in enumerate(drawn):
        left = panel * side + margin
        logs = [torch.tensor(values, dtype=torch.double).log10() for values in (curve.sizes, times)]
        law = logs[1][-1] + curve.power * (logs[0] - logs[0][-1])
        low, high = min(logs[1].min(), law.min()).item() - 0.1, max(logs[1].max(), law.max()).item() + 0.1
        span = logs[0][-1] - logs[0][0]

        def at(x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
            return left + (side - 1.5 * margin) * ((x - logs[0][0]) / span).item(), side - margin - (
                side - 2 * margin
            ) * (y.item() - low) / (high - low)

        pen.rectangle([left - 6, margin - 6, left + side - 1.5 * margin + 6, side - margin + 6], outline="#c8ced6")
        pen.text((left - 6, 14), curve.title, fill="#1c2026")
        pen.line([at(x, y) for x, y in zip(logs[0], law)], fill="#c8ced6", width=2)
        pen.line([at(x, y) for x, y in zip(*logs)], fill="#1f6feb", width=2)
        for size, value, x, y in zip(curve.sizes, times, *logs):
            column, row = at(x, y)
            pen.ellipse([column - 3, row - 3, column + 3, row + 3], fill="#1f6feb")
            pen.text((column - 10, side - margin + 10), str(size), fill="#57606a")
            pen.text((column - 10, row - 16), f"{value:.3g}", fill="#57606a")
    pen.text(
        (8, side - 14), "milliseconds of CPU by size, both logarithmic; blue: measured, grey: the law", fill="#57606a"
    )
    picture.save(path)
