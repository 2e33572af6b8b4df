"""Scan: score a file of prompts, or a folder of Parquet files, however long, in bounded memory.

The rows are cut into parts of PART prompts. Each part's scores are a file of their own, written whole, so that a scan
that was killed goes on with the parts that are missing, and machines that share a folder can each take some.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .align import align
from .alignment import Alignment, load_aligned
from .direction import Direction
from .direction_format import GLOBAL
from .prompt_files import Part, Position, find_parts, parquet_files, prompt_column, read_parts
from .sources import Progress, encoder_states, load_encoder, load_source, pooled_states, quiet

PART = 1024
RUN = 64
"""Parts that Ray reads in one go: a minute of scoring at a prompt a millisecond, beside which it is nothing to find their
place in a file."""
SETTINGS, ALIGNED = "scan.json", "aligned.safetensors"


@dataclass(frozen=True)
class Scan:
    """What to score and how.

    Attributes:
        prompts: a file of prompts, or a folder of Parquet files; see `prompt_files`.
        out: folder for the scores.
        model: local folder or .gguf of a language model or text encoder.
        kind: "source": the model that the direction was learned in; "encoder": any other, to which the direction is
            aligned first.
        budget: share of benign prompts that may be flagged.
        column: the one that holds the prompts; None: the one with a name that is known.
    """

    prompts: Path
    out: Path
    model: Path
    kind: str
    budget: float = 0.01
    column: str | None = None


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
        ValueError: the folder holds another scan, or the prompts can't be read: which file, which row, what to do.
        ImportError: an optional package is missing; the message names the install command.
    """
    if task.kind not in ("source", "encoder"):
        raise ValueError(f"kind {task.kind!r}: choose source or encoder")
    task = replace(task, column=prompt_column(task.prompts, task.column))
    facts = _facts(direction, task)
    _check(task.out, facts)
    # A file that can't be read shows here, before the folder is its own: it can be mended then.
    parts = list(find_parts(task.prompts, task.column, PART))
    if not parts:
        raise ValueError(f"{task.prompts.name}: no prompts in it")
    _claim(task.out, facts)
    missing = [part for part in parts if not _path(task.out, part).is_file()]
    if missing and not (task.out / ALIGNED).is_file():
        _fit(direction, task, progress).save(task.out / ALIGNED)
    done: Iterable[Any] = (
        _on_ray(direction, task, missing, ray, workers) if ray and missing else _here(direction, task, missing)
    )
    for _ in progress(done, len(missing), "scoring"):
        pass
    return _summary(task.out, parts)


def _path(out: Path, part: Part) -> Path:
    """Where a part's scores are."""
    return out / f"part-{part.number:06d}.csv"


def _facts(direction: Direction, task: Scan) -> dict[str, Any]:
    """What a folder's scores are of."""
    return {
        "direction": direction.fingerprint,
        "prompts": [task.prompts.name, *_content(task.prompts)],
        "column": task.column,
        "model": task.model.name,
        "kind": task.kind,
        "budget": task.budget,
        "part": PART,
    }


def _check(out: Path, facts: Mapping[str, Any]) -> None:
    """See that the scores in this folder, if there are any, are of the same."""
    if not (out / SETTINGS).is_file():
        return
    kept = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    other = [name for name in facts if kept.get(name) != facts[name]]
    if other:
        raise ValueError(f"{out} holds another scan ({', '.join(other)} differ): give another --out, or remove it")


def _claim(out: Path, facts: Mapping[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if not (out / SETTINGS).is_file():
        files.write_bytes(out / SETTINGS, (json.dumps(facts, indent=1) + "\n").encode())


def _content(prompts: Path) -> tuple[int, str]:
    """Bytes in all, and a hash: of a file's first megabyte, or of a folder's files by name and size."""
    if prompts.is_file():
        with prompts.open("rb") as stream:
            return prompts.stat().st_size, hashlib.sha256(stream.read(1 << 20)).hexdigest()
    sizes = [(file, (prompts / file).stat().st_size) for file in parquet_files(prompts)]
    return sum(size for _, size in sizes), hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


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

    def __call__(self, part: Part, prompts: Sequence[str]) -> None:
        """Write one part's scores: row, score, flagged, category (the highest), each category's score, prompt; of a folder
        also which file's row it is."""
        asked = [i for i, prompt in enumerate(prompts) if prompt]
        scores = torch.full((len(prompts), len(self.aligned.names)), torch.nan)
        for i, states in zip(asked, self.read([prompts[i] for i in asked]) if asked else ()):
            scores[i] = self.aligned.prompt_scores(states)
        threshold = self.aligned.threshold(self.task.budget)
        text = io.StringIO()
        table = csv.writer(text)
        columns = ["row", "score", "flagged", "category", *self.aligned.categories, "prompt"]
        table.writerow(["file", *columns] if part.file else columns)
        for i, row in enumerate(scores.tolist()):
            highest = max(zip(row[1:], self.aligned.categories), default=(0.0, GLOBAL))[1] if i in asked else ""
            table.writerow(
                [
                    *([part.file] if part.file else []),
                    part.start.row + i,
                    *([f"{row[0]:.4f}", int(row[0] > threshold), highest] if highest else ["", "", ""]),
                    *(f"{value:.4f}" if highest else "" for value in row[1:]),
                    prompts[i],
                ]
            )
        files.write_bytes(_path(self.task.out, part), text.getvalue().encode())


def _here(direction: Direction, task: Scan, parts: Sequence[Part]) -> Iterator[None]:
    if not parts:
        return
    scorer = Scorer(direction, task)
    for part, prompts in read_parts(task.prompts, task.column, parts):
        scorer(part, prompts)
        yield


class _RayScorer(Scorer):
    """A Scorer as Ray Data calls it: on a batch of rows that hold a part each."""

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        for part, prompts in zip(batch["part"], batch["prompts"]):
            super().__call__(_unpacked(part), json.loads(prompts))
        return {"part": batch["part"]}


def _packed(part: Part) -> str:
    return json.dumps([part.number, part.file, part.start, part.rows])


def _unpacked(text: str) -> Part:
    number, file, start, rows = json.loads(text)
    return Part(number, file, Position(*start), rows)


def _on_ray(direction: Direction, task: Scan, parts: Sequence[Part], address: str, workers: int) -> Iterator[Any]:
    """Ray Data reads runs of parts on whichever machine is free, and hands them to the models.

    Not through its own reader of Parquet: that doesn't say which row of a file a prompt is, and so can't go on after a kill.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError("scanning on several machines needs Ray: pip install 'ray[data]'") from error

    def read(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for part, prompts in read_parts(task.prompts, task.column, [_unpacked(part) for part in batch["part"]]):
            yield {"part": [_packed(part)], "prompts": [json.dumps(prompts)]}

    # A Ray of our own needs no page to look at.
    ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    try:
        runs = -(-len(parts) // max(1, min(RUN, len(parts) // (4 * workers))))
        rows = ray.data.from_items([{"part": _packed(part)} for part in parts], override_num_blocks=runs)
        scored = rows.map_batches(read, batch_size=None).map_batches(
            _RayScorer, fn_constructor_args=(direction, task), batch_size=1, concurrency=workers
        )
        yield from scored.iter_rows()
    finally:
        ray.shutdown()


def _summary(out: Path, parts: Sequence[Part]) -> dict[str, Any]:
    prompts, flagged = 0, Counter[str]()
    for part in parts:
        with _path(out, part).open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                prompts += 1
                if row["flagged"] == "1":
                    flagged[row["category"]] += 1
    return {"prompts": prompts, "flagged": sum(flagged.values()), "by_category": dict(flagged.most_common())}
