"""CSV, TSV, TXT and JSON Lines, each also gzipped, read line by line: memory doesn't grow with the file."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Callable, Collection, Iterator, Mapping, Sequence

from .table import JSON, KINDS, LINES, MAX_CHARACTERS, NO_TEXT, TABLE, Position, suffix_of

DELIMITERS = ",;\t"
MAX_LINE = 16 << 20
"""Bytes of a line, which is held whole: enough for a picture in JSON beside a prompt."""
RETURNS = "lines end in a carriage return alone, as on old Macs; save the file with the line ends of today"


class _Lines:
    """The lines of a text, and how far they have been read; for the csv module, which asks for them as it needs them."""

    def __init__(self, stream: IO[bytes], name: str, start: Position) -> None:
        self.stream, self.name, self.byte, self.line = stream, name, start.byte, start.line
        stream.seek(start.byte)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        try:
            raw = self.stream.readline(MAX_LINE + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.here()}: damaged or cut short; get the file again ({error})") from None
        if not raw:
            raise StopIteration
        if len(raw) > MAX_LINE:
            raise ValueError(f"{self.here()}: a line of more than {MAX_LINE >> 20} MB")
        try:
            text = raw.decode("utf-8" if self.byte else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.here()}: {_encoding(raw, error)}") from None
        if "\0" in text:
            raise ValueError(f"{self.here()}: {NO_TEXT}")
        self.byte, self.line = self.byte + len(raw), self.line + 1
        return text

    def here(self) -> str:
        """The file and the line that comes next, for a message."""
        return f"{self.name}, line {self.line + 1}"


def _encoding(raw: bytes, error: UnicodeDecodeError) -> str:
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    found = "not UTF-8 but UTF-16 text" if utf16 else f"not UTF-8 text (byte 0x{raw[error.start]:02x})"
    encoding = "UTF-16" if utf16 else "WINDOWS-1252"
    return f"{found}. Save the file as UTF-8, or convert it from what it is, such as: iconv -f {encoding} -t UTF-8 OLD > NEW"


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, unpacked where it is gzip, whatever its name says: browsers unpack what they save."""
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not packed:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as stream:
            yield stream  # type: ignore[misc]


class TextTable:
    """A CSV, TSV, TXT or JSON Lines file."""

    columns: Sequence[str] = ()
    count: int | None = None

    def __init__(self, path: Path, name: str, known: Collection[str]) -> None:
        suffix = suffix_of(path)
        self.path, self.name, self.kind = path, name, KINDS[suffix]
        self.delimiter, self.begin = "\t", Position()
        with _unpacked(path) as stream:
            lines = _Lines(stream, name, self.begin)
            first = next((line for line in lines if line.strip() or self.kind == LINES), None)
            if first is None:
                raise ValueError(f"{name} is empty")
            if self.kind == JSON:
                self.columns = list(_object(first, f"{name}, line {lines.line}"))
            elif self.kind == TABLE:
                if suffix == ".csv":
                    self.delimiter = _delimiter(first, known)
                header = _cells(itertools.chain([first], lines), self.delimiter, lambda: f"{name}, line {lines.line}")
                self.columns = [cell.strip() for cell in next(header)]
                self.begin = Position(0, lines.byte, lines.line)

    def check(self, column: str) -> None:
        """Any may."""

    def rows(self, start: Position | None = None, only: str | None = None) -> Iterator[tuple[Position, Mapping]]:
        at = start or self.begin
        with _unpacked(self.path) as stream:
            lines = _Lines(stream, self.name, at)
            for cells in self._parse(lines, only):
                if cells is not None:
                    yield at, cells
                at = Position(at.row + (cells is not None), lines.byte, lines.line)

    def where(self, position: Position) -> str:
        return f"{self.name}, line {position.line + 1}"

    def _parse(self, lines: _Lines, only: str | None) -> Iterator[Mapping | None]:
        """Each row; None for a blank line of a table, which is none."""
        if self.kind == LINES:
            for line in lines:
                if "\r" in line.rstrip("\r\n"):
                    raise ValueError(f"{self.name}, line {lines.line}: {RETURNS}")
                yield {"": line}
        elif self.kind == JSON:
            for line in lines:
                found = _object(line, f"{self.name}, line {lines.line}") if line.strip() else None
                yield found if found is None or only is None else {only: found.get(only)}
        else:
            place = self.columns.index(only) if only is not None else None
            for row in _cells(lines, self.delimiter, lines.here):
                if len(row) > len(self.columns) and any(row[len(self.columns) :]):
                    raise ValueError(
                        f"{self.name}, line {lines.line}: {len(row)} cells where the header has {len(self.columns)}; "
                        f"put a prompt with {self.delimiter!r} in it between quotation marks"
                    )
                if not row:
                    yield None
                elif place is None:
                    yield dict(itertools.zip_longest(self.columns, row[: len(self.columns)], fillvalue=""))
                else:
                    yield {only: row[place] if place < len(row) else ""}


def _delimiter(header: str, known: Collection[str]) -> str:
    """The character that parts the columns: the one that shows a known name, and of those the one with most columns."""

    def told(delimiter: str) -> tuple[bool, int]:
        try:
            cells = next(csv.reader([header], delimiter=delimiter), [])
        except csv.Error:
            cells = []
        return any(cell.strip().lower() in known for cell in cells), len(cells)

    return max(DELIMITERS, key=told)


def _cells(lines: Iterator[str], delimiter: str, here: Callable[[], str]) -> Iterator[list[str]]:
    """The csv module's rows, its errors with the line at which the row begins."""
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        where = here()
        try:
            row = next(reader, None)
        except csv.Error as error:
            fault = str(error)
            if fault.startswith("field larger"):
                fault = f"a cell of more than {MAX_CHARACTERS:,} characters; is a quotation mark left open?"
            raise ValueError(f"{where}: {RETURNS if fault.startswith('new-line') else fault}") from None
        if row is None:
            return
        yield row


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{where}: not a JSON object; JSON Lines have one object a line, and jq -c '.[]' makes them of an array"
        )
    return found
