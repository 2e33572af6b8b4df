"""Prompts to draw, from the files of the public red-team sets or of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..prompt_files import Row, read_rows, suffix_of

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


def read_prompts(path: str | Path, column: str | None = None, *, option: str = "--column") -> list[Prompt]:
    """The prompts of a file, or of a folder of Parquet files; see `prompt_files`.

    A blank line of a .txt is passed by. T2VSafetyBench comes as 1.txt to 14.txt: the category is then the file's name.

    Args:
        column: the one that holds the prompts; None: the one with a name that is known.
        option: what messages call the way to name it.

    Raises:
        ValueError: it can't be read, or a row has no prompt: which file, which row, what to do.
        FileNotFoundError: there is no such file.
        ImportError: Parquet without pyarrow; the message names the install command.
    """
    path = Path(path)
    rows = read_rows(path, column, option=option)
    if path.is_file() and suffix_of(path) == ".txt":
        topic = Path(path.name.removesuffix(".gz")).stem
        prompts = [Prompt(row.text, (topic,)) for row in rows if row.text]
    else:
        prompts = [_prompt(row) for row in rows]
    if not prompts:
        raise ValueError(f"{path.name}: no prompts in it")
    return prompts


def _prompt(row: Row) -> Prompt:
    if not row.text:
        raise ValueError(f"{row.where}: no prompt in this row; write one, or take the row out")
    category, seed = (
        next((row.fields[name] for name in names if name in row.fields), "")
        for names in (CATEGORY_COLUMNS, SEED_COLUMNS)
    )
    expected = row.fields.get(EXPECTED_COLUMN, "")
    return Prompt(row.text, _parts(category, ","), _seed(seed, row.where), _parts(expected, ";"))


def _parts(cell: str | tuple[str, ...], separator: str) -> tuple[str, ...]:
    parts = cell.split(separator) if isinstance(cell, str) else cell
    return tuple(part.strip() for part in parts if part.strip())


def _seed(cell: str | tuple[str, ...], where: str) -> int | None:
    if not isinstance(cell, str) or not cell.strip():
        return None
    try:
        seed = int(cell) if cell.strip().isdigit() else float(cell)  # pandas writes a column with gaps as 12.0
        if not 0 <= seed < 1 << 64 or seed != int(seed):
            raise ValueError
        return int(seed)
    except (ValueError, OverflowError):
        raise ValueError(f"{where}: the seed {cell!r} is not a whole number of 0 or more") from None
