"""The prompts that directions are built from: minimal pairs per category, harmless anchors, and anchors in other languages.

All are tab-separated text with a header line. Pairs and anchors are split into `train` and `held_out` by theme; `fresh` pairs are
of themes that were written last, and that nothing was chosen on. An anchor's kind says how near the line it comes:

    everyday   what people type; a budget speaks of these
    near       harmless, in scenes where the line runs ("a nude statue in a museum")
    mention    harmless, and names something unsafe ("a poster that warns of heroin"): a hard negative

What is only ever measured on stands in benchmarks/prompts.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Iterable, NamedTuple, Sequence

HERE = Path(__file__).parent
KINDS = ("everyday", "near", "mention")


class Pair(NamedTuple):
    """Two prompts that differ only in one concept."""

    category: str
    theme: str
    style: str
    safe: str
    unsafe: str


class Anchor(NamedTuple):
    """One harmless prompt."""

    kind: str
    theme: str
    style: str
    prompt: str


class Translation(NamedTuple):
    """A harmless prompt in another language, and the anchor that it translates."""

    language: str
    kind: str
    theme: str
    style: str
    english: str
    prompt: str


class AnchorSet(NamedTuple):
    """What a direction is estimated with beside its pairs; arguments for `estimate`."""

    anchors: list[str]
    near: list[str]
    mentions: list[str]
    translations: list[Translation]


def read_table(path: Path, columns: tuple[str, ...]) -> Iterable[dict[str, str]]:
    """The rows of a tab-separated file with these columns, none of them empty.

    Raises:
        ValueError: a column that isn't there, or an empty cell; says which, and where.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        missing = [c for c in columns if c not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(f"{path}: the header line lacks the columns {missing} (tab-separated)")
        for row in reader:
            empty = [c for c in columns if not (row[c] or "").strip()]
            if empty:
                raise ValueError(f"{path}, line {reader.line_num}: nothing in the columns {empty}")
            yield row


def read_pairs(folder: str | Path = HERE / "pairs", split: str | None = "train") -> list[Pair]:
    """Pairs from `folder/<category>.tsv`; `split` is "train", "held_out", "fresh" or None for all."""
    files = sorted(Path(folder).glob("*.tsv"))
    if not files:
        raise FileNotFoundError(f"no <category>.tsv in {folder}")
    columns = ("theme", "style", "safe", "unsafe")
    return [
        Pair(file.stem, *(row[c] for c in columns))
        for file in files
        for row in read_table(file, ("split", *columns))
        if split in (None, row["split"])
    ]


def read_anchors(
    path: str | Path = HERE / "anchors.tsv", split: str | None = "train", kinds: Sequence[str] = ("everyday", "near")
) -> list[Anchor]:
    """Anchors of some kinds; `split` is "train", "held_out" (those to measure on) or None for all."""
    rows = read_table(Path(path), ("split", *Anchor._fields))
    return [
        Anchor(*(row[c] for c in Anchor._fields))
        for row in rows
        if split in (None, row["split"]) and row["kind"] in kinds
    ]


def read_translations(folder: str | Path = HERE / "translations") -> list[Translation]:
    """Anchors in other languages, from `folder/<language>.tsv`."""
    columns = Translation._fields[1:]
    return [
        Translation(file.stem, *(row[c] for c in columns))
        for file in sorted(Path(folder).glob("*.tsv"))
        for row in read_table(file, columns)
    ]


def training_anchors(pairs: Iterable[Pair], path: str | Path = HERE / "anchors.tsv") -> AnchorSet:
    """What the shipped direction is estimated with beside its pairs.

    The pairs' safe halves are harmless prompts like the others, in the very scenes where the line runs. Whatever is translated
    is an anchor too.
    """
    by_kind: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
    for anchor in read_anchors(path, kinds=KINDS):
        by_kind[anchor.kind][anchor.prompt] = None
    by_kind["near"] |= {pair.safe: None for pair in pairs}
    translations = read_translations() if Path(path) == HERE / "anchors.tsv" else []
    known = {prompt for prompts in by_kind.values() for prompt in prompts}
    for one in translations:
        if one.english not in known:
            by_kind[one.kind][one.english] = None
    near = [prompt for prompt in by_kind["near"] if prompt not in by_kind["everyday"]]
    mentions = [
        prompt for prompt in by_kind["mention"] if prompt not in by_kind["everyday"] and prompt not in by_kind["near"]
    ]
    return AnchorSet([*by_kind["everyday"], *near], near, mentions, translations)


def pairs_hash(pairs: Iterable[Pair]) -> str:
    """SHA-256 over the pairs' text, in order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update("\t".join((pair.category, pair.safe, pair.unsafe)).encode() + b"\n")
    return digest.hexdigest()
