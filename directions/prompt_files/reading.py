"""Whole files row by row, and parts of them; which column holds the prompts."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Sequence

from .parquet import ParquetTable
from .table import KINDS, LINES, PARQUET, Position, Table, suffix_of, text_of
from .text import TextTable

PROMPT_COLUMNS = {
    "prompt": "I2P, UnlearnDiffAtk, T2VSafetyBench and most others",
    "prompts": "DrawBench",
    "caption": "COCO",
    "captions": "the same, of many",
    "text": "LAION",
    "adv_prompt": "MMA-Diffusion",
    "sensitive prompt": "Ring-A-Bell",
}
"""In lower case, how the column of prompts is called, and by whom."""


class Row(NamedTuple):
    """A row of a file of prompts."""

    text: str
    #: Its cells by column in lower case, as text or a tuple of texts; pictures and the like are left out. None in a .txt.
    fields: Mapping[str, str | tuple[str, ...]]
    #: The file and the row, for a message.
    where: str


@dataclass(frozen=True)
class Part:
    """Rows of a prompt file that stand together.

    Attributes:
        number: of the part, over all files.
        file: in a folder, which file, as a path from there; else "".
        start: where it begins in its file.
        rows: how many.
    """

    number: int
    file: str
    start: Position
    rows: int


def read_rows(path: str | Path, column: str | None = None, *, option: str = "--column") -> Iterator[Row]:
    """The rows of a file of prompts, or of a folder of Parquet files, one after the other.

    Args:
        column: the one that holds the prompts, in any case; None: the one with a name from PROMPT_COLUMNS. A .txt has none.
        option: what messages call the way to name it.

    Raises:
        ValueError: which file, which row, what is wrong and what to do.
        FileNotFoundError: there is no such file.
        ImportError: Parquet without pyarrow; the message names the install command.
    """
    for _, table, name in _tables(Path(path), column, option):
        for position, cells in table.rows():
            where = table.where(position)
            yield Row(text_of(cells.get(name), name, where), _fields(cells) if name else {}, where)


def prompt_column(path: str | Path, column: str | None = None) -> str:
    """The column of prompts, as the (first) file spells it; "" of a .txt. Raises as `read_rows` does."""
    return next(_tables(Path(path), column))[2]


def find_parts(path: Path, column: str | None, size: int) -> Iterator[Part]:
    """The rows in parts of `size` and what is left, from one pass over a text; Parquet says itself how many it has.

    Raises as `read_rows` does: every prompt of a text is looked at.
    """
    number = 0
    for file, table, name in _tables(path, column):
        for start, rows in _starts(table, name, size):
            yield Part(number, file, start, rows)
            number += 1


def read_parts(path: Path, column: str | None, parts: Iterable[Part]) -> Iterator[tuple[Part, list[str]]]:
    """The prompts of these parts, which stand in their order, from one pass over each file from its first part on.

    So gzip is unpacked once and a row group of Parquet decoded once, not for each part. Raises as `read_rows` does.
    """
    for file, own in groupby(parts, key=lambda part: part.file):
        waiting = list(own)
        table, name = _open(path / file, file or path.name, column)
        texts = (text for _, text in _prompts(table, name, waiting[0].start))
        passed = waiting[0].start.row
        for part in waiting:
            skipped = part.start.row - passed
            yield part, list(islice(texts, skipped, skipped + part.rows))
            passed = part.start.row + part.rows


def parquet_files(folder: Path) -> list[str]:
    """The Parquet files in a folder at any depth, in order, as paths from there.

    Raises:
        ValueError: there is none.
    """
    inside = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.parquet"))
    # As readers of such folders do: what begins with a dot or an underscore is not data.
    files = [file for file in inside if not any(part[0] in "._" for part in file.split("/"))]
    if not files:
        raise ValueError(f"{folder} has no Parquet files in it; of other kinds give one file")
    return files


def _starts(table: Table, name: str, size: int) -> Iterator[tuple[Position, int]]:
    if table.count is not None:
        yield from ((Position(row), min(size, table.count - row)) for row in range(0, table.count, size))
        return
    start, rows = Position(), 0
    for position, _ in _prompts(table, name):
        start = start if rows else position
        rows += 1
        if rows == size:
            yield start, rows
            rows = 0
    if rows:
        yield start, rows


def _prompts(table: Table, name: str, start: Position | None = None) -> Iterator[tuple[Position, str]]:
    for position, cells in table.rows(start, name):
        yield position, text_of(cells[name], name, table.where(position))


def _tables(path: Path, column: str | None, option: str = "--column") -> Iterator[tuple[str, Table, str]]:
    """Each file: its path within a folder ("" of a file by itself), it as a table, and its column of prompts."""
    if not path.is_dir():
        yield "", *_open(path, path.name, column, option)
        return
    for file in parquet_files(path):
        yield file, *_open(path / file, file, column, option)


def _open(path: Path, name: str, column: str | None, option: str = "--column") -> tuple[Table, str]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of prompts {path}")
    kind, known = KINDS[suffix_of(path)], [column.strip().lower()] if column else PROMPT_COLUMNS
    table: Table = ParquetTable(path, name) if kind == PARQUET else TextTable(path, name, known)
    if kind == LINES:
        return table, ""
    chosen = _choose(table.columns, name, column, option)
    table.check(chosen)
    return table, chosen


def _choose(columns: Sequence[str], name: str, column: str | None, option: str) -> str:
    has = f"it has {', '.join(map(repr, columns))[:300] or 'none'}"
    if column:
        exact = [one for one in columns if one == column]
        found = exact or [one for one in columns if one.strip().lower() == column.strip().lower()]
        if not found:
            raise ValueError(f"{name} has no column {column!r}: {has}")
        if len(found) > 1:
            raise ValueError(f"{name} has {len(found)} columns {column!r}: give each a name of its own")
        return found[0]
    found = [one for one in columns if one.strip().lower() in PROMPT_COLUMNS]
    if not found:
        known = ", ".join(map(repr, PROMPT_COLUMNS))
        raise ValueError(
            f"{name} has no column of prompts: {has}. Say which with {option}; without it one of these is known: {known}"
        )
    if len(found) > 1:
        several = ", ".join(map(repr, found))
        raise ValueError(
            f"{name} has several columns of prompts: {several}; say which with {option}, such as {option} {found[0]!r}"
        )
    return found[0]


def _fields(cells: Mapping[str, Any]) -> dict[str, str | tuple[str, ...]]:
    fields: dict[str, str | tuple[str, ...]] = {}
    for name, cell in cells.items():
        if isinstance(cell, (list, tuple)) and all(isinstance(one, str) for one in cell):
            fields[name.strip().lower()] = tuple(cell)
        elif not isinstance(cell, (list, tuple, dict, bytes)):
            fields[name.strip().lower()] = "" if cell is None else str(cell)
    return fields
