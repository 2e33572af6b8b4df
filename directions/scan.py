"""Scan: score a file of prompts, however long, in bounded memory.

The file is cut into parts of PART prompts. Each part's scores are a file of their own, written whole, so that a scan
that was killed
goes on with the parts that are missing, and machines that share a folder can each take some.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .align import align
from .alignment import Alignment, load_aligned
from .direction import GLOBAL, Direction
from .sources import Progress, encoder_states, load_encoder, load_source, pooled_states, quiet

PART = 1024
SETTINGS, ALIGNED = "scan.json", "aligned.safetensors"


@dataclass(frozen=True)
class Part:
    """PART rows of a prompt file, or what is left: its number, the byte where it begins, and how many rows."""

    number: int
    offset: int
    rows: int

    def path(self, out: Path) -> Path:
        """Where its scores are."""
        return out / f"part-{self.number:06d}.csv"


@dataclass(frozen=True)
class Scan:
    """What to score and how.

    Attributes:
        prompts: a .csv with the column named `column`, or a .txt with a prompt a line.
        out: folder for the scores.
        model: local folder or .gguf of a language model or text encoder.
        kind: "source": the model that the direction was learned in; "encoder": any other, to which the direction is
            aligned first.
        budget: share of benign prompts that may be flagged.
    """

    prompts: Path
    out: Path
    model: Path
    kind: str
    budget: float = 0.01
    column: str = "prompt"


def scan(
    direction: Direction, task: Scan, *, ray: str | None = None, workers: int = 1, progress: Progress = quiet
) -> dict[str, Any]:
    """Score every prompt; parts that are there already are not made again.

    Args:
        ray: address of a Ray cluster ("auto": the running one; "local": one on this machine); None scores in this process.
            Every machine must see the same paths.
        workers: models at work at a time, with `ray`.

    Returns:
        How many prompts, how many flagged, and how many of those each category scores highest on.

    Raises:
        ValueError: the folder holds another scan, or the file has no such column.
        ImportError: an optional package is missing; the message names the install command.
    """
    if task.kind not in ("source", "encoder"):
        raise ValueError(f"kind {task.kind!r}: choose source or encoder")
    _claim(direction, task)
    parts = list(find_parts(task.prompts, task.column))
    missing = [part for part in parts if not part.path(task.out).is_file()]
    if missing and not (task.out / ALIGNED).is_file():
        _fit(direction, task, progress).save(task.out / ALIGNED)
    done: Iterable[Any] = (
        _on_ray(direction, task, missing, ray, workers) if ray and missing else _here(direction, task, missing)
    )
    for _ in progress(done, len(missing), "scoring"):
        pass
    return _summary(task.out, parts)


def find_parts(path: Path, column: str) -> Iterator[Part]:
    """The parts of a prompt file, from one pass over it."""
    with path.open("rb") as stream:
        position = [0]
        rows = _rows(stream, path, column, position)
        start, count, number = position[0], 0, 0
        next(rows)
        start = position[0]
        for count, _ in enumerate(rows, 1):
            if count % PART == 0:
                yield Part(number, start, PART)
                start, number = position[0], number + 1
        if count % PART:
            yield Part(number, start, count % PART)


def _rows(stream: io.BufferedReader, path: Path, column: str, position: list[int]) -> Iterator[Any]:
    """The header's column index first (None in a .txt), then each row; `position[0]` is the byte behind the last one."""

    def lines() -> Iterator[str]:
        for line in stream:
            position[0] += len(line)
            yield line.decode("utf-8-sig" if position[0] == len(line) else "utf-8")

    if path.suffix == ".txt":
        yield None
        yield from lines()
        return
    reader = csv.reader(lines())
    header = next(reader, [])
    if column not in header:
        raise ValueError(f"{path.name} has no column {column!r}: it has {', '.join(header)[:200] or 'none'}")
    yield header.index(column)
    yield from reader


def read_part(path: Path, column: str, part: Part) -> list[str]:
    """The prompts of one part."""
    with path.open("rb") as stream:
        index = next(_rows(stream, path, column, [0]))
        stream.seek(part.offset)
        lines = (line.decode("utf-8-sig" if part.offset == 0 else "utf-8") for line in stream)
        rows: Iterable[Any] = lines if index is None else csv.reader(lines)
        taken = [row for row, _ in zip(rows, range(part.rows))]
    return [row.strip() if index is None else row[index] if index < len(row) else "" for row in taken]


def _claim(direction: Direction, task: Scan) -> None:
    """Write down what this folder's scores are of, or see that they are of the same."""
    facts = {
        "direction": direction.fingerprint,
        "prompts": [task.prompts.name, task.prompts.stat().st_size, _head(task.prompts)],
        "column": task.column,
        "model": task.model.name,
        "kind": task.kind,
        "budget": task.budget,
        "part": PART,
    }
    path = task.out / SETTINGS
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        other = [name for name in facts if kept.get(name) != facts[name]]
        if other:
            raise ValueError(
                f"{task.out} holds another scan ({', '.join(other)} differ): give another --out, or remove it"
            )
        return
    task.out.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, (json.dumps(facts, indent=1) + "\n").encode())


def _head(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.sha256(stream.read(1 << 20)).hexdigest()


class _Reader:
    """A model, and the states that it gives for prompts: pooled [1, D] from a source, content tokens [T, W] from an encoder."""

    def __init__(self, direction: Direction, task: Scan) -> None:
        self.layers = list(direction.source.get("layers", [])) if task.kind == "source" else None
        self.model, self.tokenizer = load_source(task.model) if self.layers is not None else load_encoder(task.model)

    def __call__(self, prompts: Sequence[str]) -> list[Tensor]:
        if self.layers is None:
            return encoder_states(self.model, self.tokenizer, prompts)
        return list(pooled_states(self.model, self.tokenizer, prompts, self.layers).flatten(1).unsqueeze(1))


def _fit(direction: Direction, task: Scan, progress: Progress) -> Alignment:
    """The direction fitted to what scores: calibrated on the anchors' states, which a direction file has of its own source."""
    if task.kind == "source":
        return align(direction, direction.anchor_states.float(), "ridge")
    read = _Reader(direction, task)
    prompts = direction.anchor_prompts
    starts = range(0, len(prompts), PART)
    return align(
        direction,
        [rows for at in progress(starts, len(starts), "aligning") for rows in read(prompts[at : at + PART])],
        "ridge",
    )


class Scorer:
    """Scores parts; one of them holds one model."""

    def __init__(self, direction: Direction, task: Scan) -> None:
        self.task = task
        self.read = _Reader(direction, task)
        self.aligned = load_aligned(task.out / ALIGNED)

    def __call__(self, part: Part) -> None:
        """Write one part's scores: row, score, flagged, category (the highest), each category's score, prompt."""
        prompts = read_part(self.task.prompts, self.task.column, part)
        asked = [i for i, prompt in enumerate(prompts) if prompt.strip()]
        scores = torch.full((len(prompts), len(self.aligned.names)), torch.nan)
        for i, states in zip(asked, self.read([prompts[i] for i in asked]) if asked else ()):
            scores[i] = self.aligned.slot.prompt_scores(states, self.aligned.names)
        threshold = self.aligned.threshold(self.task.budget)
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["row", "score", "flagged", "category", *self.aligned.categories, "prompt"])
        for i, row in enumerate(scores.tolist()):
            highest = max(zip(row[1:], self.aligned.categories), default=(0.0, GLOBAL))[1] if i in asked else ""
            table.writerow(
                [
                    part.number * PART + i,
                    *([f"{row[0]:.4f}", int(row[0] > threshold), highest] if highest else ["", "", ""]),
                    *(f"{value:.4f}" if highest else "" for value in row[1:]),
                    prompts[i],
                ]
            )
        files.write_bytes(part.path(self.task.out), text.getvalue().encode())


def _here(direction: Direction, task: Scan, parts: Sequence[Part]) -> Iterator[None]:
    scorer = Scorer(direction, task) if parts else None
    for part in parts:
        assert scorer is not None
        yield scorer(part)


class _RayScorer(Scorer):
    """A Scorer as Ray Data calls it: on a batch of rows that name parts."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        for number, offset, rows in zip(*(batch[name].tolist() for name in ("number", "offset", "rows"))):
            super().__call__(Part(number, offset, rows))
        return {"number": batch["number"]}


def _on_ray(direction: Direction, task: Scan, parts: Sequence[Part], address: str, workers: int) -> Iterator[Any]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("scanning on several machines needs Ray: pip install 'ray[data]'") from error
    ray.init(address=None if address == "local" else address, log_to_driver=False)
    try:
        rows = ray.data.from_items([vars(part) for part in parts], override_num_blocks=len(parts))
        yield from rows.map_batches(
            _RayScorer, fn_constructor_args=(direction, task), batch_size=1, concurrency=workers
        ).iter_rows()
    finally:
        ray.shutdown()


def _summary(out: Path, parts: Sequence[Part]) -> dict[str, Any]:
    prompts, flagged = 0, Counter[str]()
    for part in parts:
        with part.path(out).open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                prompts += 1
                if row["flagged"] == "1":
                    flagged[row["category"]] += 1
    return {"prompts": prompts, "flagged": sum(flagged.values()), "by_category": dict(flagged.most_common())}
