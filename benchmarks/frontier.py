"""Attack success against harmless drift, as a picture: python -m benchmarks.frontier [--out docs/frontier.png]

Draws what `benchmarks.probe` and `benchmarks.images` measured, from their JSON; measures nothing itself. On the probe drift is
in benign spreads; in pictures it is the mean 1 - SSIM of harmless captions' pictures, those that stay the same included.
Needs: pip install matplotlib
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

from harness.server import ROOT
from miniature.encoder import GEMMA, MINILM

from .images import IMPLICIT, SHIPPED

HERE = Path(__file__).parent


class Way(NamedTuple):
    """How a way of steering is drawn."""

    colour: str
    marker: str = "o"
    line: str = "-"


WAYS = {
    "graded": Way("#d1242f"),
    "gate": Way("#1f6feb"),
    "add": Way("#1a7f37"),
    "project": Way("#9a6700"),
    "SAFREE": Way("#8250df", "s"),
    "native, gate": Way("#1f6feb", "^", ":"),
    "native, add": Way("#1a7f37", "^", ":"),
    "random": Way("#8c959f", "x", "--"),
}

NAMES = {MINILM: "MiniLM", GEMMA: "Gemma-3-270M", "smollm2": "SmolLM2-135M"}

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""By way of steering: drift and attack success at each of its settings."""


class Panel(NamedTuple):
    """One set of axes."""

    title: str
    drift: str
    unsteered: float
    curves: Curves


def probed(rows: Sequence[Mapping[str, Any]], target: str) -> Panel:
    """The rows of one target in probe.json; SAFREE is on fewer prompts than the others."""
    titles = {
        ("transferred", "graded"): "graded", ("transferred", "gate"): "gate", ("transferred", "add"): "add",
        ("transferred", "project"): "project", ("safree", "project"): "SAFREE", ("native", "gate"): "native, gate",
        ("native", "add"): "native, add", ("random 0", "add"): "random",
    }  # fmt: skip
    own = [row for row in rows if row["target"] == target]
    unsteered = next(row["asr"] for row in own if row["method"] == "none" and not row["setting"])
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in own:
        title = titles.get((row["method"], row["mode"]))
        plain = not any(
            words in row["setting"] for words in ("not landed", "safree's prompts", "alpha 2.0", "alpha 10.0")
        )
        if title and plain:
            curves.setdefault(title, []).append((row["drift"], row["asr"]))
    return Panel(f"probe on {NAMES[target]}", "drift of harmless prompts (benign spreads)", unsteered, curves)


def pictured(runs: Mapping[str, Any], encoder: str) -> Panel:
    """The implicit prompts' runs of one encoder in images.json."""
    curves: dict[str, list[tuple[float, float]]] = {}
    unsteered = 0.0
    for name in IMPLICIT:
        rows = runs.get(name, [])
        attacks = {row["setting"]: row["judges"]["judge"]["unsafe"][0] for row in rows if row["set"] == "unsafe"}
        drifts = {row["setting"]: row["drift"]["drift"] for row in rows if row["set"] == "benign"}
        for setting, attack in attacks.items():
            mode, _, rest = setting.partition(" ")
            title = mode if SHIPPED in rest else f"native, {mode}" if "native" in rest else "random"
            if mode == "none":
                unsteered = attack
            else:
                curves.setdefault(title, []).append((drifts[setting], attack))
    return Panel(
        f"pictures of implicit prompts, {NAMES[encoder]}", "drift of harmless pictures (1 - SSIM)", unsteered, curves
    )


def draw(panels: Sequence[Panel], path: Path) -> None:
    """A panel beside the other, drift on a scale that is logarithmic but near 0; the lower left is best.

    Raises:
        ImportError: matplotlib is not installed; the message names the command.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the frontier is drawn by matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(4.2 * len(panels), 3.9), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        axes.axhline(panel.unsteered, color="#57606a", linewidth=0.8, linestyle="--", label="unsteered")
        for name, way in WAYS.items():
            if points := sorted(panel.curves.get(name, ())):
                axes.plot(
                    *zip(*points), color=way.colour, marker=way.marker, linestyle=way.line, markersize=4, label=name
                )
        axes.set_xscale("symlog", linthresh=0.02, linscale=0.4)
        axes.set_xlim(left=-0.001)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, 1)
        axes.set(title=panel.title, xlabel=panel.drift)
        axes.grid(alpha=0.2)
    first = figure.axes[0]
    first.set_ylabel("attacks that still succeed")
    figure.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=90)


def main() -> None:
    """Draw the figures that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--probe", type=Path, default=HERE / "probe.json", help="(%(default)s)")
    parser.add_argument("--images", type=Path, default=HERE / "images.json", help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "frontier.png", help="(%(default)s)")
    args = parser.parse_args()
    rows, runs = (json.loads(path.read_text(encoding="utf-8")) for path in (args.probe, args.images))
    panels = [probed(rows, target) for target in dict.fromkeys(row["target"] for row in rows)]
    panels += [pictured(own, encoder) for encoder, own in runs.items() if "implicit" in own]
    draw(panels, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
