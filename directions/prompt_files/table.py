"""What a file of prompts is to its readers: a table, whatever kind it is, and a cell of it as a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Protocol, Sequence

TABLE, LINES, JSON, PARQUET = "table", "lines", "json", "parquet"
KINDS = {
    ".csv": TABLE,
    ".tsv": TABLE,
    ".txt": LINES,
    ".jsonl": JSON,
    ".ndjson": JSON,
    ".json": JSON,
    ".parquet": PARQUET,
}
MAX_CHARACTERS = 131_072
"""Of a prompt. The csv module reads no longer cell, and what `scan` writes is CSV."""
NO_TEXT = "a NUL character, which no text has; if the file is UTF-16, save it as UTF-8"


class Position(NamedTuple):
    """Where a row begins: rows before it, and in a text (unpacked) the bytes and the lines before it."""

    row: int = 0
    byte: int = 0
    line: int = 0


class Table(Protocol):
    """A file of rows.

    Attributes:
        columns: the names in the header, in order; none in a .txt, whose lines are the rows.
        count: how many rows, where the file says so itself.
    """

    columns: Sequence[str]
    count: int | None

    def check(self, column: str) -> None:
        """Raises ValueError where this column can't hold text."""

    def rows(self, start: Position | None = None, only: str | None = None) -> Iterator[tuple[Position, Mapping]]:
        """The rows from `start` on, each as cells by column (a .txt's by ""); those of one column with `only`."""

    def where(self, position: Position) -> str:
        """The file and the row, for a message."""


def suffix_of(path: Path) -> str:
    """What the name says that the file is, in lower case: ".csv" of P.CSV.GZ.

    Raises:
        ValueError: nothing in KINDS.
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in KINDS:
        known = ", ".join(KINDS)
        raise ValueError(
            f"{path.name}: not a kind of file that prompts are read from: {known}, and the texts also gzipped (.gz)"
        )
    return suffix


def text_of(cell: Any, column: str, where: str) -> str:
    """A cell as a prompt, without the white space round it; "" where there is none.

    Raises:
        ValueError: it holds something else than text, or what nothing can write out again.
    """
    if not isinstance(cell, str | None):
        raise ValueError(f"{where}: the column {column!r} holds {cell!r:.40}, not text")
    text = (cell or "").strip()
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{where}: a prompt of more than {MAX_CHARACTERS:,} characters; cut it or take it out")
    if "\0" in text:
        raise ValueError(f"{where}: {NO_TEXT}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: half a surrogate pair, which is no character; take it out") from None
    return text
