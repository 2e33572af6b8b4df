"""Coverage-guided fuzzing of the three readers: every mutated file loads soundly or is a DirectionFormatError.

    python -m benchmarks.trust files --minutes 30 --count 1000000

Runs in slices, each a process of its own (atheris ends its process); the corpus and the hashes of all files are kept, so
that the same command goes on where it was and no file counts twice. An input starts with one byte that chooses the
reader; the rest is the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peak import peak
from directions.alignment import STATES, Alignment, load_aligned, load_aligned_encoder
from directions.direction import Direction, read_direction
from directions.files import METADATA_KEY, DirectionFormatError
from directions.place import Place
from directions.scores import KNOTS
from directions.slot import QUANTILES, SlotAlignment
from directions.special_tokens import REST, SpecialTokenBank
from directions.steer import SteeringSettings, steer

SLICE, BOOKED = 50_000, 500
HASH = 8  # bytes
SECONDS, BYTES = 1.0, 64 << 20
LARGEST = 16_384

READERS: tuple[Callable[[Path], Any], ...] = (read_direction, load_aligned, load_aligned_encoder)
# What a header's author might put anywhere.
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**48,
    2**63,
    2**64,
    10**400,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "global",
    "..",
    "/etc/passwd",
    "a\x00b",
    "\ud800",
    "\U0001f600",
    "x" * 3000,
    "F16",
    "F32",
    "F64",
    "I64",
    "U8",
    "F8_E4M3",
    [],
    {},
    [[]],
    [0, 0],
    [2, 2],
    [0, 2**40],
    {"": ""},
)


def samples() -> list[tuple[int, Any]]:
    """(reader, something small that it reads)."""
    draw = torch.Generator().manual_seed(0)
    width, names = 4, ("global", "hate")
    direction = Direction(
        vectors={name: torch.randn(width, generator=draw) for name in names},
        readers={name: torch.randn(width, generator=draw) for name in names},
        anchor_states=torch.randn(3, width, generator=draw).half(),
        anchor_prompts=("a cat", "a dog", "a bird"),
        token_scores=torch.randn(5, len(names), generator=draw).half(),
        token_counts=torch.tensor([1, 2, 2]),
        source={"model": "sample", "layers": [1]},
        pairs={"counts": {"hate": 2}},
        licence="CC0",
        created="2026-01-01T00:00:00Z",
        tool_version="1",
    )
    slot = SlotAlignment(
        names=names,
        vectors=torch.randn(2, width, generator=draw),
        readers=torch.randn(2, width, generator=draw),
        prompt_readers=torch.randn(2, width, generator=draw),
        center=torch.randn(width, generator=draw),
        token_moments=torch.ones(2),
        mention_reader=torch.zeros(width),
        reading_moments=torch.ones(6, 2, 2),
        score_moments=torch.ones(2, 2),
        length_model=torch.zeros(2, 2, len(KNOTS)),
        languages=("en", "zh-tw"),
        language_readers=torch.randn(2, width, generator=draw),
        language_bias=torch.randn(2, generator=draw),
        language_moments=torch.ones(2, 2, 2),
        anchor_scores=torch.randn(6, 2, generator=draw),
        anchor_everyday=torch.tensor([1.0, 1, 1, 1, 0, 0]),
        token_levels=QUANTILES.repeat(2, 1),
        bank=torch.randn(2, width, generator=draw).half(),
        bank_spacing=torch.ones(2),
        fit={"method": "svd", "r2": 0.5},
        direction={"name": "sample", "source": "sample", "sha256": "0"},
    )
    places = {
        "cond": Place("cond", ("l",), width, width, length=6, unmasked=True),
        "pooled_output": Place("pooled_output", ("l",), width, width),
    }
    roles = (-1, REST, 1)
    special = SpecialTokenBank(
        torch.randn(2, width, generator=draw).half(), torch.randn(2, len(roles), width, generator=draw).half(), roles
    )
    slots = {name: replace(slot, place=place, probe=torch.ones(width)) for name, place in places.items()}
    slots["cond"] = replace(slots["cond"], padding=torch.ones(width + 1), special_tokens=special)
    return [(0, direction), (1, Alignment({STATES: slot})), (2, Alignment(slots))]


def sound(reader: int, path: Path) -> None:
    """Read a file; what loads must be finite, steer to finite states, and be written and read again.

    Raises:
        DirectionFormatError: it was refused.
        Exception: anything else is a finding.
    """
    loaded = READERS[reader](path)
    if isinstance(loaded, Direction):
        _finite(*loaded.vectors.values(), *loaded.readers.values(), loaded.anchor_states, loaded.token_scores)
        assert (
            len(loaded.fingerprint) == 64
            and loaded.categories is not None
            and int(loaded.token_counts.sum()) == len(loaded.token_scores)
        )
    else:
        for slot in loaded.slots.values():
            _finite(slot.vectors, slot.readers, slot.prompt_readers, slot.bank)
            _finite(
                *(
                    steer(slot, torch.ones(1, 2, slot.width), SteeringSettings(mode, budget=0.5))
                    for mode in ("add", "project", "gate")
                )
            )
            _finite(*(tensor for tensor in (slot.probe, slot.padding) if tensor is not None))
            if bank := slot.special_tokens:
                at = {role: [1 + place] for place, role in enumerate(bank.roles)}
                states = torch.ones(1 + len(at), slot.width)
                _finite(bank.prompts, bank.states, bank.land(states, torch.arange(len(states)) == 0, at))
    loaded.save(path)
    READERS[reader](path)


def _finite(*tensors: torch.Tensor) -> None:
    assert all(torch.isfinite(tensor).all() for tensor in tensors)


def mutate(data: bytes, size: int, seed: int, plain: Callable[[bytes, int], bytes], fresh: Sequence[bytes]) -> bytes:
    """Mostly, values of the header or the metadata become nasty ones and the lengths are put right again; else any bytes change.

    Args:
        plain: changes any bytes.
        fresh: whole files to begin with every other time, for what breaks early seldom gets far.
    """
    draw = random.Random(seed)
    data = draw.choice(fresh) if draw.random() < 0.5 else data
    try:
        if draw.random() < 0.3:
            raise ValueError("not this time")
        length = int.from_bytes(data[1:9], "little")
        header = json.loads(data[9 : 9 + length])
        body = data[9 + length :]
        inner = header.get("__metadata__", {}).get(METADATA_KEY) if draw.random() < 0.6 else None
        target = json.loads(inner) if inner else header
        for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
            _spoil(target, draw)
        if inner:
            header["__metadata__"][METADATA_KEY] = json.dumps(target)
        if draw.random() < 0.2:
            body = plain(body, len(body) + 64) if body else b""
        if draw.random() < 0.3 and len(body) > 4:
            at = draw.randrange(len(body) // 4) * 4
            body = (
                body[:at]
                + draw.choice(
                    [
                        b"\x00\x00\x80\x7f",
                        b"\x00\x00\xc0\x7f",
                        b"\x01\x00\x00\x00",
                        b"\xff\xff\x7f\x7f",
                        b"\x00\x7c\x00\xfc",
                    ]
                )
                + body[at + 4 :]
            )
        text = json.dumps(header).encode()
        made = data[:1] + len(text).to_bytes(8, "little") + text + body
        return made if len(made) <= size else plain(data, size)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return plain(data, size)


def _spoil(value: Any, draw: random.Random) -> None:
    """Change one place in a JSON value, at any depth."""
    while isinstance(value, (dict, list)) and value:
        key = draw.choice(list(value)) if isinstance(value, dict) else draw.randrange(len(value))
        if isinstance(value[key], (dict, list)) and value[key] and draw.random() < 0.7:
            value = value[key]
            continue
        action = draw.random()
        if action < 0.6:
            value[key] = draw.choice(NASTY)
        elif action < 0.75:
            del value[key]
        elif isinstance(value, dict):
            value[
                draw.choice(["", "global", "anchors.states", "cond.probe", "x" * 200, "\u202e", *map(str, value)])
            ] = value[key]
        else:
            value.append(value[key])
        return


class Meter:
    """The most CPU seconds and memory that one file took: the peak while it was read, over what there was before."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.bytes = 0

    def __call__(self, action: Callable[[], None], size: int) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = peak()
        started = time.process_time()
        try:
            action()
        finally:
            took = time.process_time() - started
            grown = peak() - before
            self.seconds, self.bytes = max(self.seconds, took), max(self.bytes, grown)
            assert took < SECONDS, f"{took:.2f} s"
            assert grown < BYTES + size, f"{grown >> 20} MB"


def _slice(out: Path, work: Path, seed: int, runs: int) -> None:
    """Fuzz in this process, which atheris ends."""
    import atheris

    for module in ("files", "direction", "slot", "place", "alignment", "special_tokens"):
        _instrument(atheris, f"directions.{module}")
    path = work / "input.safetensors"
    torch.set_num_threads(1)
    known = len(list((out / "corpus").iterdir()))
    fresh = [file.read_bytes() for file in sorted((out / "corpus").glob("seed-*"))]
    hashes = out / "seen"
    kept = hashes.read_bytes() if hashes.is_file() else b""
    seen = {kept[at : at + HASH] for at in range(0, len(kept), HASH)} | {_hash(data) for data in fresh}
    facts = {"seed": seed, "loaded": 0, "refused": 0, "seconds": 0.0, "bytes": 0}
    # The warm-up of torch and json isn't any file's memory.
    for reader, sample in samples():
        sound(reader, sample.save(path))
    meter = Meter()

    calls, new = 0, []

    def one(data: bytes) -> None:
        nonlocal calls
        if not data:
            return
        calls += 1
        digest = _hash(data)
        if digest in seen and calls > known:  # the corpus is run in each slice, to be known again
            return
        path.write_bytes(data[1:])
        outcome = "loaded"
        try:
            meter(lambda: sound(data[0] % 3, path), len(data))
        except DirectionFormatError:
            outcome = "refused"
        if digest not in seen:
            seen.add(digest)
            new.append(digest)
            facts[outcome] += 1
        if len(new) == BOOKED:
            with open(hashes, "ab") as stream:
                stream.write(b"".join(new))
            new.clear()
            (out / "slice.json").write_text(json.dumps(facts | {"seconds": meter.seconds, "bytes": meter.bytes}))

    def custom(data: bytes, size: int, number: int) -> bytes:
        return mutate(data, size, number, atheris.Mutate, fresh)

    # libFuzzer's timeout is by the clock, on which a busy machine may stand still for minutes; the Meter has the CPU's.
    options = [
        f"-runs={runs + known}",
        f"-seed={seed}",
        f"-max_len={LARGEST}",
        "-timeout=3600",
        "-rss_limit_mb=0",
        f"-artifact_prefix={out}/finding-",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(out / "corpus")], one, custom_mutator=custom)
    atheris.Fuzz()


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=HASH).digest()


def _instrument(atheris: Any, name: str) -> None:
    for value in vars(sys.modules[name]).values():
        if callable(value) and getattr(value, "__module__", None) == name:
            if isinstance(value, type):
                for function in list(vars(value).values()):
                    if hasattr(function, "__code__"):
                        atheris.instrument_func(function)
            elif hasattr(value, "__code__"):
                atheris.instrument_func(value)


def campaign(out: Path, minutes: float, count: int = 1_000_000) -> dict[str, Any]:
    """Fuzz until `count` mutated files or the time is over; goes on from what `out` has.

    Raises:
        AssertionError: a finding; the message names the input and holds the traceback.
    """
    import atheris  # noqa: F401  (each slice needs it)
    from tqdm import tqdm

    (out / "corpus").mkdir(parents=True, exist_ok=True)
    for reader, sample in samples():
        path = sample.save(out / "sample.safetensors")
        (out / "corpus" / f"seed-{reader}").write_bytes(bytes([reader]) + path.read_bytes())
    ledger, part = out / "files.json", out / "slice.json"
    total = (
        json.loads(ledger.read_text())
        if ledger.is_file()
        else dict.fromkeys(("slices", "files", "loaded", "refused", "seconds", "bytes"), 0)
    )
    end = time.monotonic() + minutes * 60

    def book() -> None:
        """Add what a slice has done, also one that was killed."""
        if part.is_file():
            facts = json.loads(part.read_text())
            total["slices"] += 1
            total["files"] += facts["loaded"] + facts["refused"]
            for name in ("loaded", "refused"):
                total[name] += facts[name]
            for name in ("seconds", "bytes"):
                total[name] = max(total[name], facts[name])
            ledger.write_text(json.dumps(total))
            part.unlink()

    book()
    memory = Path("/dev/shm")  # a disk would wait for every flush
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work,
        tqdm(total=count, initial=min(count, total["files"]), desc="mutated files", unit="file") as bar,
    ):
        while total["files"] < count and time.monotonic() < end:
            command = [
                sys.executable,
                "-m",
                "benchmarks.trust.files",
                str(out),
                work,
                str(total["slices"] + 1),
                str(SLICE),
            ]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if done.returncode or not part.is_file():
                raise AssertionError(f"a finding in {out}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
            book()
            bar.update(total["files"] - bar.n)
    return total


if __name__ == "__main__":
    _slice(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
