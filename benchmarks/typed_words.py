"""What a typed word finds and what it leaves alone, on forty concepts of our own.

    python -m benchmarks.typed_words [--targets minilm gemma-3-270m] [--split choose] [--json benchmarks/typed_words.json]

For each concept of benchmarks/prompts/concepts.tsv its word alone is typed (`directions.from_words`), and once more with contrast
words. Shares at a budget of 1%: of unseen phrasings found (that name it, and that say it in other words), of its neighbours flagged
(those typed as contrast and the others apart), and of everyday harmless prompts that don't name it, of themes that nothing was
fitted on. Seconds, and seconds of CPU, are those of the word's own prompts and of the fit: harmless prompts are read once per
encoder. Medians.
The method was chosen on the concepts of the split `choose`; those of `confirm` were measured once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

from torch import Tensor

import directions
from directions import Alignment
from directions.prompts import read_anchors, read_table
from directions.words import harmless_prompts, names_it

from .models import TARGETS, encoder, target_states

PROMPTS = Path(__file__).parent / "prompts"
BUDGET = 0.01
CONTRASTED = 4
"""As many of a concept's neighbours, the first, are what its contrast words name."""


class Cached:
    """An encoder that has read the harmless prompts before.

    Attributes:
        seconds: that it has taken.
    """

    def __init__(self, target: str, harmless: Sequence[str]) -> None:
        self._read: Callable[[Sequence[str]], list[Tensor]] = encoder(target)
        self._known = dict(zip(harmless, target_states(target, harmless)))

    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        missing = [prompt for prompt in prompts if prompt not in self._known]
        found = dict(zip(missing, self._read(missing)))
        return [self._known[p] if p in self._known else found[p].float() for p in prompts]


def flagged(aligned: Alignment, states: Sequence[Tensor]) -> list[bool]:
    """Which prompts are flagged at BUDGET."""
    return [bool(aligned.flagged(rows, BUDGET)) for rows in states]


def measure(target: str, split: str | None, source: str) -> list[dict[str, Any]]:
    """Two rows per concept: its word typed alone, and with contrast words."""
    table = [
        row
        for row in read_table(PROMPTS / "concepts.tsv", ("split", "concept", "kind", "prompt"))
        if split in (None, row["split"])
    ]
    contrasts = {
        row["concept"]: row["contrast"].split(", ")
        for row in read_table(PROMPTS / "contrasts.tsv", ("concept", "contrast"))
    }
    everyday = [one.prompt for one in read_anchors(split="held_out", kinds=("everyday",))]
    everyday_states = target_states(target, everyday)
    harmless = harmless_prompts(directions.load(source))
    encode = Cached(target, harmless)
    states = dict(zip([row["prompt"] for row in table], encode([row["prompt"] for row in table])))
    rows = []
    for contrasted, concept in itertools.product((False, True), dict.fromkeys(row["concept"] for row in table)):
        own = [row for row in table if row["concept"] == concept]
        start, cpu = time.perf_counter(), time.process_time()
        aligned = directions.from_words([concept], encode, harmless, contrast=contrasts[concept] if contrasted else ())
        row: dict[str, Any] = {"target": target, "concept": concept, "split": own[0]["split"], "contrast": contrasted}
        row |= {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        for kind in ("named", "other words", "neighbour"):
            row[kind] = flagged(aligned, [states[one["prompt"]] for one in own if one["kind"] == kind])
        left = [s for prompt, s in zip(everyday, everyday_states) if not names_it(prompt, concept)]
        row["everyday"] = sum(flagged(aligned, left)) / len(left)
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _line(row: dict[str, Any]) -> str:
    shares = " ".join(f"{kind} {_share(row[kind]):.2f}" for kind in ("named", "other words", "neighbour"))
    name = row["concept"] + (" (contrast)" if row["contrast"] else "")
    return f"{row['target']:14}{name:26}{shares} everyday {row['everyday']:.3f} {row['seconds']:.1f} s, {row['cpu']:.1f} s of CPU"


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means over concepts; `found` is over all unseen phrasings."""
    columns = {
        "found": lambda r: r["named"] + r["other words"],
        "named": lambda r: r["named"],
        "other words": lambda r: r["other words"],
        "neighbours": lambda r: r["neighbour"],
        "typed neighbours": lambda r: r["neighbour"][:CONTRASTED],
        "other neighbours": lambda r: r["neighbour"][CONTRASTED:],
    }
    means = {name: _share([one for row in rows for one in of(row)]) for name, of in columns.items()}
    means["everyday"] = sum(row["everyday"] for row in rows) / len(rows)
    return means | {name: statistics.median(row[name] for row in rows) for name in ("seconds", "cpu")}


def main() -> None:
    """Print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="smollm2-135m-instruct", help="whose harmless prompts (%(default)s)")
    parser.add_argument("--targets", nargs="+", default=["minilm", "gemma-3-270m"], choices=sorted(TARGETS))
    parser.add_argument("--split", choices=["choose", "confirm"], help="half of the concepts (default: all)")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "typed_words.json")
    args = parser.parse_args()
    rows = [row for target in args.targets for row in measure(target, args.split, args.source)]
    for target in args.targets:
        for split in dict.fromkeys(row["split"] for row in rows):
            for contrast in (False, True):
                some = [r for r in rows if (r["target"], r["split"], r["contrast"]) == (target, split, contrast)]
                cells = "  ".join(f"{name} {value:.3f}" for name, value in summary(some).items())
                print(f"{target:14}{split:9}{'with' if contrast else 'no':5} contrast  {cells}")
    args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"written: {args.json.name}")


if __name__ == "__main__":
    main()
