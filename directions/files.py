"""Read and write the pack's safetensors files. The only module that writes files.

A file from a stranger is hostile until checked: everything that can be known from the header
(kinds, shapes, sizes, offsets, metadata) is checked before any tensor is allocated.
"""

from __future__ import annotations

import glob
import json
import math
import os
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Mapping

import torch
from torch import Tensor

FORMAT_VERSION = 1
METADATA_KEY = "safety_direction"
# Together they bound what a header can cost: text takes up to 4 bytes a letter, and an empty list of 3 letters 60 bytes.
MAX_HEADER_BYTES = 4 << 20
MAX_VALUES = 1 << 17
MAX_FILE_BYTES = 2 << 30
MAX_TENSORS = 4096
DTYPES = {"F32": (torch.float32, 4), "F16": (torch.float16, 2), "I8": (torch.int8, 1)}
ABANDONED = 600
"""Seconds without a write after which a `.partial` is what a kill left behind."""


class DirectionFormatError(ValueError):
    """A direction or aligned-direction file that can't be used; says which file, what is wrong and where."""


class _Fault(Exception):
    pass


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(items)
    if len(out) != len(items):
        raise _Fault("a name stands twice in the header")
    return out


def _json(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        raw = text.encode() if isinstance(text, str) else text
        if sum(raw.count(mark) for mark in b",:[{") > MAX_VALUES:
            raise _Fault(f"{what} lists more than {MAX_VALUES} values")
        value = json.loads(raw.decode(), object_pairs_hook=_unique)
        _check_plain(value, what)
    except RecursionError:
        raise _Fault(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise _Fault(f"{what} is not JSON: {str(error)[:120]!a}") from None
    if not isinstance(value, dict):
        raise _Fault(f"{what} is not a JSON object")
    return value


def _check_plain(value: Any, what: str) -> None:
    """Python's JSON lets NaN, Infinity, 1e999 and half a surrogate pair through, which nothing can write out again."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            item.encode()
        elif isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, float) and not math.isfinite(item):
            raise _Fault(f"{what} has a number that JSON doesn't have: {item}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _check_entries(header: dict[str, Any], room: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    if len(header) > MAX_TENSORS:
        raise _Fault(f"the header lists {len(header)} tensors, more than {MAX_TENSORS}")
    entries, spans = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _Fault(f"tensor {name[:80]!r}: its entry is not dtype, shape and data_offsets")
        dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise _Fault(f"tensor {name[:80]!r}: dtype {str(dtype)[:20]!r}, where {' or '.join(DTYPES)} was expected")
        if not isinstance(shape, list) or not 1 <= len(shape) <= 3 or not all(_is_count(n) and n for n in shape):
            raise _Fault(f"tensor {name[:80]!r}: the shape is not one to three positive whole numbers")
        if not isinstance(span, list) or len(span) != 2 or not all(map(_is_count, span)):
            raise _Fault(f"tensor {name[:80]!r}: data_offsets are not two whole numbers")
        if span[1] - span[0] != math.prod(shape) * DTYPES[dtype][1]:
            raise _Fault(f"tensor {name[:80]!r}: {span[1] - span[0]} bytes can't hold shape {shape} of {dtype}")
        spans.append(span)
        entries[name] = (dtype, tuple(shape))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _Fault("tensors overlap or leave a gap in the data")
        end = stop
    if end != room:
        raise _Fault(f"the header describes {end} bytes of data and the file has {room} (truncated or padded?)")
    return entries


def _is_finite(tensor: Tensor) -> bool:
    # In parts: the test makes copies, and a file may have 2 GB.
    return all(bool(torch.isfinite(part).all()) for part in tensor.flatten().split(1 << 20))


Check = Callable[[Mapping[str, tuple], Mapping[str, Any]], "str | None"]
"""Sees `{name: (dtype, shape)}` and the metadata before anything is allocated; returns a sentence on what is wrong, or None."""


def read(path: str | Path, kinds: Mapping[str, Check]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of one of `kinds` ("direction", "aligned", "aligned-encoder") as `(tensors, metadata)`.

    Raises:
        DirectionFormatError: what is wrong, and where.
        FileNotFoundError: there is no such file.

    The tensors take what the file has; beyond that, reading takes at most 64 MB.
    """
    path = Path(path)
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise _Fault("not a regular file")
            size = facts.st_size
            if size > MAX_FILE_BYTES:
                raise _Fault(f"{size} bytes, more than the {MAX_FILE_BYTES} that such a file can have")
            if size < 10:
                raise _Fault("too short to be a safetensors file (empty or truncated)")
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise _Fault(f"the header claims {length} bytes; the file has {size} (truncated, or not safetensors)")
            header = _json(stream.read(length), "the header")
            text = header.pop("__metadata__", None)
            if not isinstance(text, dict) or not isinstance(text.get(METADATA_KEY), str):
                raise _Fault(f"the metadata {METADATA_KEY!r} is missing: not a safety-direction file")
            metadata = _json(text[METADATA_KEY], "the metadata")
            kind = metadata.get("kind")
            if metadata.get("format_version") != FORMAT_VERSION or not isinstance(kind, str) or kind not in kinds:
                found = f"{str(kind)[:40]!r} version {ascii(metadata.get('format_version'))[:20]}"
                known = " and ".join(map(repr, kinds))
                raise _Fault(f"it is {found}; this reader knows {known} version {FORMAT_VERSION}")
            entries = _check_entries(header, size - 8 - length)
            fault = kinds[kind](entries, metadata)
            if fault:
                raise _Fault(fault)
            tensors = {}
            for name in sorted(entries, key=lambda name: header[name]["data_offsets"]):
                dtype, shape = entries[name]
                tensor = tensors[name] = torch.empty(shape, dtype=DTYPES[dtype][0])
                data = memoryview(tensor.flatten().view(torch.uint8).numpy())  # type: ignore[arg-type]
                if stream.readinto(data) != data.nbytes:
                    raise _Fault("the file ended early (truncated while it was read)")
                if not _is_finite(tensor):
                    raise _Fault(f"tensor {name!r} has NaN or infinite values")
        return tensors, metadata
    except _Fault as fault:
        raise DirectionFormatError(f"{path.name}: {fault}") from None
    except FileNotFoundError:
        raise
    except IsADirectoryError:
        raise DirectionFormatError(f"{path.name}: a folder, not a file") from None
    except OSError as error:
        raise DirectionFormatError(f"{path.name}: can't be read ({error.strerror or error})") from None


def write(path: str | Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write the file whole or not at all: a temporary neighbour, flushed, then renamed over `path`.

    Raises:
        ValueError: `read` would refuse it: NaN, an overflow, or too much metadata.
        OSError: the folder can't be written to, or the disk is full; what was there before is still there.
    """
    from safetensors.torch import save

    path = Path(path)
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise ValueError(
                f"{path.name} can't be written: tensor {name!r} has NaN or infinite values (an overflow in half precision?)"
            )
    text = json.dumps({"kind": kind, "format_version": FORMAT_VERSION, **metadata}, ensure_ascii=False, sort_keys=True)
    data = save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
        metadata={METADATA_KEY: text},
    )
    if int.from_bytes(data[:8], "little") > MAX_HEADER_BYTES:
        raise ValueError(
            f"{path.name} can't be written: its prompts and other metadata take more than {MAX_HEADER_BYTES} bytes"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data)
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step; a kill leaves the old file or the new one."""
    _sweep(path)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise type(error)(error.errno, f"{error.strerror or error}; nothing was written", str(path)) from None


def _sweep(path: Path) -> None:
    """Remove what a killed write of this very file left behind; not that of another process that is at it now."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()
