"""Prompts to draw, from the CSV files of the public red-team sets or of one's own."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

TEXT_COLUMNS = {
    "adv_prompt": "MMA-Diffusion",
    "sensitive prompt": "Ring-A-Bell",
    "prompt": "I2P, UnlearnDiffAtk, T2VSafetyBench and most others",
    "caption": "COCO",
}
"""Where the prompt stands, and whose name for it that is; the first one that a file has is taken."""

CATEGORY_COLUMNS = ("category", "categories", "class", "aspect")
SEED_COLUMNS = ("seed", "sd_seed", "evaluation_seed")
EXPECTED_COLUMN = "expected"


class Prompt(NamedTuple):
    """One prompt to draw."""

    text: str
    #: What it is about; I2P names several for some prompts.
    categories: tuple[str, ...] = ()
    #: For the sampler; None: from its place in the file.
    seed: int | None = None
    #: The classifier's labels that the picture ought to show.
    expected: tuple[str, ...] = ()


def _parts(cell: str | None, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in (cell or "").split(separator) if part.strip())


def _seed(cell: str | None, where: str) -> int | None:
    if not (cell or "").strip():
        return None
    try:
        seed = float(cell or "")  # pandas writes a column with gaps as 12.0
        if not 0 <= seed < 1 << 64 or seed != int(seed):
            raise ValueError
        return int(cell) if (cell or "").strip().isdigit() else int(seed)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: the seed {cell!r} is not a whole number of 0 or more") from None


def read_prompts(path: str | Path) -> list[Prompt]:
    """The prompts of a .csv or (tab-separated) .tsv file with a header line, or of a .txt file, one in a line.

    T2VSafetyBench comes as 1.txt to 14.txt: the category is then the file's name.

    Raises:
        ValueError: no column that is known to hold prompts (the message lists those there are), or a bad line.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of prompts {path}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if path.suffix == ".txt":
        prompts = [Prompt(line.strip(), (path.stem,)) for line in text.splitlines() if line.strip()]
    else:
        prompts = _read_table(path, text)
    if not prompts:
        raise ValueError(f"{path.name}: no prompts in it")
    return prompts


def _read_table(path: Path, text: str) -> list[Prompt]:
    reader = csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if path.suffix == ".tsv" else ",")
    columns = {name.strip().lower(): name for name in reader.fieldnames or [] if name}
    prompt_column = next((columns[name] for name in TEXT_COLUMNS if name in columns), None)
    if prompt_column is None:
        known = ", ".join(f"{name!r} ({whose})" for name, whose in TEXT_COLUMNS.items())
        raise ValueError(
            f"{path.name}: no column of prompts. It has {', '.join(map(repr, columns)) or 'no columns'}; one of these "
            f"is needed: {known}"
        )
    category_column = next((columns[name] for name in CATEGORY_COLUMNS if name in columns), None)
    seed_column = next((columns[name] for name in SEED_COLUMNS if name in columns), None)
    prompts = []
    for row in reader:
        where = f"{path.name}, line {reader.line_num}"
        if not (row[prompt_column] or "").strip():
            raise ValueError(f"{where}: the column {prompt_column!r} is empty")
        prompts.append(
            Prompt(
                row[prompt_column].strip(),
                _parts(row[category_column], ",") if category_column else (),
                _seed(row[seed_column], where) if seed_column else None,
                _parts(row[columns[EXPECTED_COLUMN]], ";") if EXPECTED_COLUMN in columns else (),
            )
        )
    return prompts
