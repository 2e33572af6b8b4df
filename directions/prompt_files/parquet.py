"""Parquet, read from the row group that holds the first row wanted, batch by batch: memory doesn't grow with the file."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, Sequence

from .table import Position

BATCH = 1024
"""Rows of Parquet that are decoded at a time."""


class ParquetTable:
    """A Parquet file, read from the row group that holds the first row wanted."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        if not path.stat().st_size:
            raise ValueError(f"{name} is empty")
        with self._opened() as file:
            self.columns: Sequence[str] = file.schema_arrow.names
            self.types = dict(zip(self.columns, file.schema_arrow.types))
            self.groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        self.count: int | None = sum(self.groups)

    def check(self, column: str) -> None:
        if not _holds_text(self.types[column]):
            raise ValueError(f"{self.name}: the column {column!r} holds {self.types[column]}, not text")

    def rows(self, start: Position | None = None, only: str | None = None) -> Iterator[tuple[Position, Mapping]]:
        first = (start or Position()).row
        names = [only] if only is not None else [name for name, kind in self.types.items() if _is_plain(kind)]
        ends = list(itertools.accumulate(self.groups))
        groups = [i for i, end in enumerate(ends) if end > first]
        row = ends[groups[0]] - self.groups[groups[0]] if groups else 0
        with self._opened() as file:
            for batch in file.iter_batches(BATCH, row_groups=groups, columns=names, use_threads=False):
                columns = [self._values(column, row) for column in batch.columns]
                for cells in zip(*columns):
                    if row >= first:
                        yield Position(row), dict(zip(names, cells))
                    row += 1

    def where(self, position: Position) -> str:
        return f"{self.name}, row {position.row + 1}"

    def _values(self, column: Any, row: int) -> list[Any]:
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            for i, value in enumerate(column):
                try:
                    value.as_py()
                except UnicodeDecodeError:
                    raise ValueError(f"{self.where(Position(row + i))}: not UTF-8 text") from None
            raise

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            import pyarrow
            from pyarrow.parquet import ParquetFile
        except ImportError as error:
            raise ImportError("reading Parquet needs pyarrow: pip install pyarrow") from error
        try:
            # Through a buffer: a column of a whole row group is not held at once.
            with ParquetFile(self.path, buffer_size=1 << 20) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self.name} can't be read as Parquet: damaged, or something else ({error})") from None


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)


def _is_plain(kind: Any) -> bool:
    """Whether a cell is text, a number or a list of such, and no picture."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return _holds_text(inner) or any(is_such(inner) for is_such in numbers)
