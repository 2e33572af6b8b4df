"""The prompts that directions are built from: minimal pairs per category, and benign anchors.

Both are tab-separated text with a header line, split into `train` and `held_out` by theme. `fresh` pairs are of themes
that were written last, and that nothing was chosen on. Anchors split as `mention` are harmless too, but name something
unsafe ("a poster that warns of heroin"); `mention_held_out` are those to measure on.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Iterable, NamedTuple

HERE = Path(__file__).parent


class Pair(NamedTuple):
    """Two prompts that differ only in one concept."""

    category: str
    theme: str
    style: str
    safe: str
    unsafe: str


class Anchor(NamedTuple):
    """One benign prompt."""

    theme: str
    style: str
    prompt: str


def _rows(path: Path, columns: tuple[str, ...], split: str | None) -> Iterable[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [c for c in ("split", *columns) if c not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}: the header line lacks the columns {missing} (tab-separated)")
        for row in reader:
            empty = [c for c in columns if not (row[c] or "").strip()]
            if empty:
                raise ValueError(f"{path}, line {reader.line_num}: nothing in the columns {empty}")
            if split is None or row["split"] == split:
                yield row


def read_pairs(folder: str | Path = HERE / "pairs", split: str | None = "train") -> list[Pair]:
    """Pairs from `folder/<category>.tsv`; `split` is "train", "held_out", "fresh" or None for all."""
    files = sorted(Path(folder).glob("*.tsv"))
    if not files:
        raise FileNotFoundError(f"no <category>.tsv in {folder}")
    columns = ("theme", "style", "safe", "unsafe")
    return [Pair(file.stem, *(row[c] for c in columns)) for file in files for row in _rows(file, columns, split)]


def read_anchors(path: str | Path = HERE / "anchors.tsv", split: str | None = "train") -> list[Anchor]:
    """Benign anchors; `split` is "train", "held_out" (fresh benign prompts for measuring), "mention",
    "mention_held_out" or None for all."""
    columns = ("theme", "style", "prompt")
    return [Anchor(*(row[c] for c in columns)) for row in _rows(Path(path), columns, split)]


def training_anchors(
    pairs: Iterable[Pair], path: str | Path = HERE / "anchors.tsv", leave_out: int | None = None
) -> tuple[list[str], list[str]]:
    """What a direction is estimated with beside its pairs: benign anchors and mentions.

    The pairs' safe halves are benign prompts like the others, in the very scenes where the line runs.

    Args:
        leave_out: every how many-th anchor to leave out, for a smaller file; None leaves out none.
    """
    anchors = [anchor.prompt for anchor in read_anchors(path)] + [pair.safe for pair in pairs]
    kept = [prompt for i, prompt in enumerate(anchors) if not leave_out or i % leave_out]
    return kept, [anchor.prompt for anchor in read_anchors(path, split="mention")]


def pairs_hash(pairs: Iterable[Pair]) -> str:
    """SHA-256 over the pairs' text, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update("\t".join((pair.category, pair.safe, pair.unsafe)).encode() + b"\n")
    return digest.hexdigest()
