"""kill -9 at random moments of what writes files: afterwards each is the old one or the complete new one, and the
next run ends alike.

    python -m benchmarks.trust kills --minutes 30 --count 300

Each work runs in a fork of this process, so that a kill costs no start; the moments are drawn from the seed that is printed.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import directions
from directions.align import align
from directions.alignment import Alignment, load_aligned_encoder
from directions.direction import Direction
from directions.estimate import estimate
from directions.evaluate import plan
from directions.evaluate.figures import summarise
from directions.evaluate.generate import Job, generate
from directions.evaluate.judges import Verdict
from directions.evaluate.judging import judge_all
from directions.evaluate.prompts import Prompt
from directions.evaluate.report import write
from directions.place import Place
from directions.prompts import Pair

PARTIAL = ".partial"


@dataclass
class Work:
    """Something that writes files.

    Attributes:
        run: do it, in a folder.
        endless: it writes again and again, so that a kill always falls into it.
        results: what may stand in each file, by name, as hashes; a name that isn't here may hold anything whole.
    """

    name: str
    run: Callable[[Path], None]
    endless: bool = False
    results: dict[str, set[str]] = field(default_factory=dict)
    seconds: float = 0.0


def contents(folder: Path) -> dict[str, str]:
    """Hashes of the files in a folder by their path in it, without what a kill may leave."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.endswith(PARTIAL)
    }


def killed(run: Callable[[Path], None], folder: Path, after: float) -> bool:
    """Run in a fork and kill it after so many seconds; whether it was still running.

    Raises:
        AssertionError: it failed by itself.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            with redirect_stderr(io.StringIO()):
                run(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the work failed by itself ({status})"
    return status != 0


def trial(work: Work, draw: random.Random, folder: Path) -> bool:
    """One kill, a look at what is there, and a run to the end; whether the kill came in time."""
    before = contents(folder)
    hit = killed(work.run, folder, draw.uniform(0, 1.05 * work.seconds))
    for name, found in contents(folder).items():
        if name in work.results:
            assert found in work.results[name] or found == before.get(name), (
                f"{work.name}: {name} is neither the old file nor a complete new one"
            )
    return hit


def prepare(work: Work, folder: Path) -> None:
    """Learn how long it takes and what it writes, from two whole runs."""
    for _ in range(1 if work.endless else 2):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        started = time.monotonic()
        if not work.endless:
            with redirect_stderr(io.StringIO()):
                work.run(folder)
            work.seconds = time.monotonic() - started
            for name, found in contents(folder).items():
                work.results.setdefault(name, set()).add(found)
    assert all(len(found) == 1 for found in work.results.values()) or work.endless, (
        f"{work.name}: two runs end differently"
    )


# --- the works


def anchored(seed: int, anchors: int, width: int) -> Direction:
    """A direction of random numbers."""
    draw = torch.Generator().manual_seed(seed)
    return Direction(
        vectors={"global": torch.randn(width, generator=draw)},
        readers={},
        anchor_states=torch.randn(anchors, width, generator=draw).half(),
        anchor_prompts=tuple(f"prompt {i}" for i in range(anchors)),
        source={"model": "random"},
        pairs={},
        licence="",
        created="",
        tool_version="",
    )


def save() -> Work:
    """Two versions of a file of 2 MB, one over the other, on and on."""
    versions = [anchored(seed, 2000, 512) for seed in (0, 1)]

    def run(folder: Path) -> None:
        while True:
            for version in versions:
                version.save(folder / "d.safetensors")

    work = Work("save", run, endless=True, seconds=0.4)
    with tempfile.TemporaryDirectory() as name:
        work.results["d.safetensors"] = {
            hashlib.sha256(v.save(Path(name) / "d.safetensors").read_bytes()).hexdigest() for v in versions
        }
    return work


def learn() -> Work:
    """estimate, in a language model of random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    os.environ["SOURCE_DATE_EPOCH"] = "0"
    words = [f"w{i}" for i in range(40)]
    vocabulary = {word: i for i, word in enumerate(["<s>", "<unk>", "knife", "spoon", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
        )
    ).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    pairs = [Pair("violence", f"t{i % 8}", "caption", f"{words[i]} spoon", f"{words[i]} knife") for i in range(40)]
    anchors = [f"{words[i % 40]} {words[i * 3 % 40]} {words[i * 7 % 40]}" for i in range(1, 60)]
    return Work(
        "estimate", lambda folder: [estimate(model, tokenizer, pairs, anchors).save(folder / "d.safetensors"), None][1]
    )


def cache() -> Work:
    """What Align Safety Direction keeps: looked for, made where it isn't there, and kept."""
    direction = anchored(0, 600, 96)
    states = direction.anchor_states.float() @ torch.randn(96, 128, generator=torch.Generator().manual_seed(1))
    place = Place("cond", ("l",), 128, 128, length=77)

    def run(folder: Path) -> None:
        kept = folder / "kept.safetensors"
        try:
            load_aligned_encoder(kept)
        except (FileNotFoundError, directions.DirectionFormatError):
            slot = align(direction, states, "auto").slot
            Alignment({"cond": replace(slot, place=place, probe=torch.ones(128))}).save(kept)

    return Work("align", run)


class _Painter:
    """A server that draws one colour, by the prompt."""

    name = "painter"

    def submit(self, graph: Job) -> str:
        self.job = graph
        return "1"

    def wait(self, prompt_id: str, stopped: Callable[[], bool]) -> list[dict[str, str]]:
        time.sleep(0.003)
        return [{"filename": "x.png"}]

    def picture(self, reference: Any) -> bytes:
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), 90 + self.job.prompt, np.uint8)).save(stream, "png")
        return stream.getvalue()

    def cancel(self, prompt_ids: Any) -> None:
        pass


class _Brightness:
    name, fingerprint, threshold, labels = "brightness", "1", 0.4, ()

    def __call__(self, pictures: Any, prompts: Any = None) -> Verdict:
        bright = np.array([picture.mean() / 255 for picture in pictures])
        return Verdict(unsafe=bright, features=np.stack([bright, 1 - bright], 1))


def measure() -> Work:
    """evaluate: draw, judge and report; a server and a judge stand in."""
    settings = plan(["gate"], [3.0])
    sets = {name: [Prompt(f"{name} {i}") for i in range(8)] for name in ("unsafe", "benign")}
    facts = {
        "workflow": "none",
        "settings": [asdict(setting) for setting in settings],
        "prompts": {name: len(rows) for name, rows in sets.items()},
        "seed": 0,
        "judges": [{"name": "brightness", "threshold": 0.4, "labels": []}],
        "reference": None,
    }
    jobs = [Job(setting.folder, name, i) for name in sets for i in range(8) for setting in settings]

    def run(folder: Path) -> None:
        generate([_Painter()], jobs, folder / "pictures", lambda job: job)  # type: ignore[arg-type, return-value, list-item]
        panel = [_Brightness()]
        judged = judge_all(panel, sets, settings, folder, None)  # type: ignore[arg-type]
        report = {"run": facts, **summarise(judged, sets, settings, panel)}  # type: ignore[arg-type]
        write(report, judged, sets, settings, folder)

    return Work("evaluate", run)


WORKS = (save, learn, cache, measure)


def campaign(out: Path, minutes: float, count: int = 300, seed: int = 0) -> dict[str, Any]:
    """Kill until `count` works were hit or the time is over.

    Raises:
        AssertionError: a file that is neither old nor complete, or a run that ends differently after kills.
    """
    from tqdm import tqdm

    torch.set_num_threads(1)
    # tqdm's own lock is shared between processes: a fork that is killed while it draws its bar would keep it for ever.
    tqdm.set_lock(threading.RLock())
    draw = random.Random(seed)
    end = time.monotonic() + minutes * 60
    hits: dict[str, int] = {}
    late = 0
    with tempfile.TemporaryDirectory(dir=out) as name, tqdm(total=count, desc="kills", unit="kill") as bar:
        for index, make in enumerate(WORKS):
            work, folder = make(), Path(name) / make.__name__
            prepare(work, folder)
            share = (count - sum(hits.values())) // (len(WORKS) - index)
            hits[work.name] = 0
            while hits[work.name] < share and time.monotonic() < end:
                if not work.endless and draw.random() < 0.3:
                    shutil.rmtree(folder)
                    folder.mkdir()
                hit = trial(work, draw, folder)
                hits[work.name] += hit
                late += not hit
                bar.update(hit)
            if not work.endless:
                work.run(folder)
                ended = contents(folder)
                assert {name: {found} for name, found in ended.items()} == work.results, (
                    f"{work.name}: after the kills a run ends differently"
                )
    return {"seed": seed, "kills": sum(hits.values()), **hits, "too late to count": late}
