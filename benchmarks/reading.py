"""What is found and what is flagged, by kind of prompt: the figures behind a budget.

    python -m benchmarks.reading [--targets minilm gemma-3-270m both] [--fresh] [--anchors N] [--json benchmarks/reading.json]

A row for each kind of prompt: how many there are, the share that is flagged at budgets of 1% and 5%, and of unsafe ones the
share found at a *real* false-positive rate of 1% on held-out everyday prompts, whatever the budget says. `both` is MiniLM and
Gemma as two slots of one encoder. All prompts are ours, and none of them trains anything: the held-out themes, and
benchmarks/prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import directions
from directions import Alignment
from directions.prompts import read_anchors, read_pairs, read_table

from .models import TARGETS, target_states

PROMPTS = Path(__file__).parent / "prompts"
BOTH = "both"
TOGETHER = ("minilm", "gemma-3-270m")
BUDGETS = (0.01, 0.05)
FEW = 40
"""Styles with fewer prompts have no row of their own."""


class Group(NamedTuple):
    """Prompts of one kind."""

    kind: str
    unsafe: bool
    prompts: list[str]


def _column(path: Path, column: str, **where: str) -> list[str]:
    columns = (column, *where)
    return [row[column] for row in read_table(path, columns) if all(row[k] == v for k, v in where.items())]


def groups(fresh: bool = False) -> list[Group]:
    """Every kind of prompt to measure on; `fresh` adds the pairs of themes that nothing was chosen on."""
    everyday = read_anchors(split="held_out", kinds=("everyday",))
    styles = sorted({one.style for one in everyday})
    by_style = {style: [one.prompt for one in everyday if one.style == style] for style in styles}
    pairs = read_pairs(split="fresh" if fresh else "held_out")
    named = "fresh" if fresh else "held-out"
    found = [Group("everyday", False, [one.prompt for one in everyday])]
    found += [Group(f"everyday, {style}", False, some) for style, some in by_style.items() if len(some) >= FEW]
    found += [
        Group("near the line", False, [one.prompt for one in read_anchors(split="held_out", kinds=("near",))]),
        Group("mentions", False, [one.prompt for one in read_anchors(split="held_out", kinds=("mention",))]),
        Group("harmless twins", False, _column(PROMPTS / "twins.tsv", "harmless")),
        Group("traps", False, _column(PROMPTS / "traps.tsv", "prompt")),
        Group(f"safe halves, {named}", False, [pair.safe for pair in pairs]),
        Group("plain captions", True, _column(PROMPTS / "plain.tsv", "prompt", style="caption")),
        Group("plain tags", True, _column(PROMPTS / "plain.tsv", "prompt", style="tags")),
        Group("as typed", True, _column(PROMPTS / "typed.tsv", "prompt")),
        Group("unsafe twins", True, _column(PROMPTS / "twins.tsv", "unsafe")),
        Group(f"unsafe halves, {named}", True, [pair.unsafe for pair in pairs]),
    ]
    for path in sorted((PROMPTS / "languages").glob("harmless-*.tsv")):
        code = path.stem.removeprefix("harmless-")
        unsafe = path.with_name(f"pairs-{code}.tsv")
        found += [
            Group(f"{code}, harmless", False, _column(path, "prompt")),
            Group(f"{code}, unsafe", True, _column(unsafe, "unsafe")),
            Group(f"{code}, unsafe, in English", True, _column(unsafe, "english")),
        ]
    return found


def alignment(source: str, target: str, anchors: int | None = None) -> Alignment:
    """The direction fitted to a target, or to both as two slots of one encoder; from all its anchors, or the first of them."""
    direction = directions.load(source)
    if anchors:
        direction = direction.beginning(anchors)
    prompts = list(direction.anchor_prompts)
    if target != BOTH:
        return directions.align(direction, target_states(target, prompts))
    return directions.align(direction, {name: target_states(name, prompts) for name in TOGETHER})


def prompt_scores(aligned: Alignment, target: str, prompts: Sequence[str]) -> Tensor:
    """Each prompt's score, [n]."""
    if target != BOTH:
        return torch.stack([aligned.prompt_score(rows) for rows in target_states(target, prompts)])
    rows = zip(*(target_states(name, prompts) for name in TOGETHER))
    return torch.stack([aligned.prompt_score(dict(zip(TOGETHER, own))) for own in rows])


def measure(source: str, target: str, fresh: bool = False, anchors: int | None = None) -> list[dict[str, Any]]:
    """One row per kind of prompt."""
    aligned = alignment(source, target, anchors)
    everyday: Tensor | None = None
    rows = []
    for kind, unsafe, prompts in groups(fresh):
        scores = prompt_scores(aligned, target, prompts)
        everyday = scores if everyday is None else everyday
        row: dict[str, Any] = {"target": target, "kind": kind, "unsafe": unsafe, "n": len(prompts)}
        row |= {f"at {b:.0%}": (scores > aligned.threshold(b)).float().mean().item() for b in BUDGETS}
        if unsafe:
            row["at real 1%"] = (scores > everyday.quantile(0.99)).float().mean().item()
        rows.append(row)
    return rows


def main() -> None:
    """Print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="smollm2-135m-instruct", help="a direction, by name or path (%(default)s)")
    parser.add_argument("--targets", nargs="+", default=[*TOGETHER, BOTH], choices=[*sorted(TARGETS), BOTH])
    parser.add_argument("--fresh", action="store_true", help="pairs of themes that nothing was chosen on")
    parser.add_argument("--anchors", type=int, help="align with the first of the anchors, as where time is short")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "reading.json")
    args = parser.parse_args()
    rows = [row for target in args.targets for row in measure(args.source, target, args.fresh, args.anchors)]
    columns = ("at 1%", "at 5%", "at real 1%")
    print(f"{'target':14}{'kind':30}{'n':>6}" + "".join(f"{column:>12}" for column in columns))
    for row in rows:
        cells = "".join(f"{row[c]:12.3f}" if c in row else f"{'-':>12}" for c in columns)
        print(f"{row['target']:14}{row['kind']:30}{row['n']:6}{cells}")
    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.json.name}")


if __name__ == "__main__":
    main()
