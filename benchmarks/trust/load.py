"""Many graphs on one ComfyUI: two clients queue alignment, steering and guard mixed, and cancel at random.

    python -m benchmarks.trust load --minutes 60 --count 500

Nothing may fail but what was cancelled, memory may not grow by more than 5% after the first 50 graphs, and no
alignment may be kept that isn't whole.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import directions
from directions.alignment import load_aligned_encoder
from harness.server import PACK, ROOT, Client, GraphError, Server

PROMPTS = (
    "a nude woman lying on a bed",
    "two friends laughing in a cafe",
    "a man stabbing another man",
    "a vase of tulips",
    "",
    "a red bicycle " * 30,
)
DIRECTIONS = 4
ANCHORS = 400
FIRST, GROWTH = 50, 0.05
CANCELLED = 0.15


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node in API format."""
    return {"class_type": kind, "inputs": inputs}


def graph(draw: random.Random) -> dict[str, dict[str, Any]]:
    """A sampling graph with any of the pack's entry points in it."""
    how = {
        "mode": draw.choice(["gate", "add", "project"]),
        "alpha": draw.choice([1.0, 3.0, 5.0]),
        "budget": draw.choice([0.01, 0.05]),
    }
    how["categories"] = draw.choice(["", "violence, sexual"])
    made = {
        "load": node("TinyImageModel"),
        "encoder": node("SafetyDirectionSmallEncoder"),
        "direction": node("SafetyDirectionLoad", direction=f"few-{draw.randrange(DIRECTIONS)}"),
        "align": node(
            "SafetyDirectionAlign",
            direction=["direction", 0],
            clip=["encoder", 0],
            method=draw.choice(["svd", "ridge", "cca"]),
        ),
        "latent": node("EmptyChromaRadianceLatentImage", width=32, height=32, batch_size=draw.choice([1, 2])),
        "clip": node("SafetyDirectionCLIP", clip=["encoder", 0], aligned=["align", 0], **how),
        "guard": node(
            "SafetyDirectionGuard", model=["load", 0], aligned=["align", 0], strict=draw.random() < 0.5, **how
        ),
    }
    made["positive"] = node(
        "CLIPTextEncode", clip=draw.choice([["encoder", 0], ["clip", 0]]), text=draw.choice(PROMPTS)
    )
    made["negative"] = node("CLIPTextEncode", clip=draw.choice([["encoder", 0], ["clip", 0]]), text="blurry")
    made["apply"] = node(
        "SafetyDirectionApply",
        conditioning=["positive", 0],
        aligned=["align", 0],
        start_percent=0.0,
        end_percent=draw.choice([0.5, 1.0]),
        **how,
    )
    made["look"] = node("SafetyDirectionInspect", conditioning=["apply", 0], aligned=["align", 0], budget=0.01)
    steps = {
        "seed": draw.randrange(1 << 30),
        "steps": 2,
        "cfg": draw.choice([0.5, 1.0, 2.0]),
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
    }
    links = {
        "model": draw.choice([["load", 0], ["guard", 0]]),
        "positive": draw.choice([["positive", 0], ["apply", 0]]),
        "negative": ["negative", 0],
    }
    made["sample"] = node("KSampler", latent_image=["latent", 0], **links, **steps)
    made["decode"] = node("VAEDecode", samples=["sample", 0], vae=["load", 1])
    made["show"] = node("PreviewImage", images=["decode", 0])
    return made


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    import psutil

    return psutil.Process(pid).memory_info().rss


def campaign(out: Path, minutes: float, count: int = 500, seed: int = 0) -> dict[str, Any]:
    """Queue `count` graphs from two clients, or until the time is over.

    Raises:
        AssertionError: a graph failed, memory grew, or half an alignment was kept.
    """
    from tqdm import tqdm

    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    memory: list[int] = []
    lock, left = threading.Lock(), iter(range(count))
    end = time.monotonic() + minutes * 60

    def client(server: Server, draw: random.Random, bar: Any) -> None:
        mine = Client(server.url)
        while time.monotonic() < end and not failures:
            with lock:
                if next(left, None) is None:
                    return
            cancelled = draw.random() < CANCELLED
            try:
                mine.queue(graph(draw), timeout=draw.uniform(0.01, 1.5) if cancelled else 600)
                outcome = "finished"
            except TimeoutError:
                outcome = "cancelled"
            except GraphError as error:
                outcome = "cancelled" if error.message == "interrupted" else "failed"
                if outcome == "failed":
                    failures.append(f"{error}\n{error.trace}")
            with lock:
                outcomes[outcome] += 1
                memory.append(resident(server.pid))
                bar.update()

    packs = {PACK: ROOT, "tiny_image_model": ROOT / "tests" / "comfyui" / "tiny_image_model"}
    with (
        Server(packs=packs, variables={"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}) as server,
        tqdm(total=count, desc="graphs", unit="graph") as bar,
    ):
        assert server.base is not None
        _provide(server.base / "models" / "safety_directions")
        clients = [threading.Thread(target=client, args=(server, random.Random(seed + i), bar)) for i in range(2)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        kept = _kept(server.base / "user" / "safety_directions")
    assert not failures, failures[0]
    growth = _growth(memory)
    assert growth is None or growth <= GROWTH, (
        f"memory grew by {growth:.1%} after the first {FIRST} graphs: {[m >> 20 for m in memory[::25]]} MB"
    )
    return {
        "seed": seed,
        "graphs": sum(outcomes.values()),
        **outcomes,
        "alignments kept": kept,
        "growth": growth and round(growth, 4),
        "MB": max(memory) >> 20,
    }


def _provide(folder: Path) -> None:
    """Directions of few anchors, so that aligning is quick; ComfyUI lists a folder anew for every graph."""
    whole = directions.load("smollm2-135m-instruct")
    for i in range(DIRECTIONS):
        few = whole.picked(range(i * ANCHORS, (i + 1) * ANCHORS))
        few.save(folder / f"few-{i}.safetensors")


def _kept(folder: Path) -> int:
    """How many alignments were kept; each must be whole."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in files:
        assert path.suffix == ".safetensors", f"{path.name} was left behind"
        load_aligned_encoder(path)
    return len(files)


def _growth(memory: list[int]) -> float | None:
    """Of the last graphs against those just after the first 50; None for short runs."""
    if len(memory) < 3 * FIRST:
        return None
    return statistics.median(memory[-FIRST:]) / statistics.median(memory[FIRST : 2 * FIRST]) - 1
