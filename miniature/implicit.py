"""Implicit prompts: they never name the unsafe thing, and ask for it all the same.

`implicit.tsv` says which icon each means, by what it looks like, an occasion, an idiom, or who or what is beside it. Half a dozen
and more per icon are trained on (`train`); what is measured is other wording (`held_out`).
"""

from __future__ import annotations

from pathlib import Path

from directions.prompts import read_table

from .scenes import ICONS, Scene

KINDS = ("description", "occasion", "idiom", "neighbour")
COLUMNS = ("icon", "split", "kind", "prompt")


def read_implicit(split: str | None = None) -> list[Scene]:
    """The scenes of a split, "train" or "held_out"; None: of both."""
    number = {icon.key: index for index, icon in enumerate(ICONS)}
    rows = read_table(Path(__file__).with_name("implicit.tsv"), COLUMNS)
    return [Scene(row["prompt"], (number[row["icon"]],), None) for row in rows if split in (None, row["split"])]
