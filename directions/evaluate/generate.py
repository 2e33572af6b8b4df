"""Draw every prompt under every setting on the servers' queues, so that it can be killed and go on.

A picture is written whole or not at all, as `<setting>/<set>-<prompt>-<n>of<count>.png`: the folder itself is the
ledger, and a prompt is done when its `count` pictures are there.
"""

from __future__ import annotations

import itertools
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..files import write_bytes
from .client import Graph, Remote, ServerLost

AHEAD = 4
"""Graphs queued ahead on each server, so that it never waits for us."""

_NAME = re.compile(r"(?P<set>[a-z]+)-(?P<prompt>\d+)-(?P<n>\d+)of(?P<count>\d+)\.\w+")


class Job(NamedTuple):
    """One prompt under one setting."""

    folder: str
    set: str
    prompt: int


def finished(folder: Path) -> dict[Job, list[Path]]:
    """The jobs that are done in a run's picture folder, with their pictures in order."""
    found: dict[Job, dict[int, Path]] = {}
    counts: dict[Job, int] = {}
    for path in folder.glob("*/*"):
        if match := _NAME.fullmatch(path.name):
            job = Job(path.parent.name, match["set"], int(match["prompt"]))
            found.setdefault(job, {})[int(match["n"])] = path
            counts[job] = int(match["count"])
    return {job: [paths[n] for n in sorted(paths)] for job, paths in found.items() if len(paths) == counts[job]}


@dataclass
class _Drawing:
    """A run under way.

    Attributes:
        todo: jobs that nobody has taken; those with the same prompt together.
        step: called after each.
        stop: set when all should end.
    """

    todo: deque[list[Job]]
    folder: Path
    graph: Callable[[Job], Graph]
    step: Callable[[], Any]
    stop: threading.Event = field(default_factory=threading.Event)

    def work(self, server: Remote) -> ServerLost | None:
        """Keep one server busy until nothing is left, and give back what was lost with it."""
        waiting: deque[tuple[Job, str]] = deque()
        mine: deque[Job] = deque()
        try:
            while not self.stop.is_set():
                self._queue_ahead(server, waiting, mine)
                if not waiting:
                    return None
                references = server.wait(waiting[0][1], self.stop.is_set)
                if references is not None:
                    pictures = [server.picture(reference) for reference in references]
                    _keep(pictures, references, self.folder, waiting[0][0])
                    waiting.popleft()
                    self.step()
            return None
        except ServerLost as error:
            if waiting or mine:
                self.todo.appendleft([*(job for job, _ in waiting), *mine])
            waiting.clear()
            return error
        except BaseException:
            self.stop.set()
            raise
        finally:
            if waiting:
                with suppress(ServerLost):
                    server.cancel([prompt_id for _, prompt_id in waiting])

    def _queue_ahead(self, server: Remote, waiting: deque[tuple[Job, str]], mine: deque[Job]) -> None:
        while len(waiting) < AHEAD:
            if not mine:
                try:
                    mine.extend(self.todo.popleft())
                except IndexError:
                    return
            waiting.append((mine[0], server.submit(self.graph(mine[0]))))
            mine.popleft()


def generate(servers: Sequence[Remote], jobs: Sequence[Job], folder: Path, graph: Callable[[Job], Graph]) -> None:
    """Draw the jobs, in order, into `folder`; those that are done already are passed over.

    Neighbours that have the same prompt go to the same server: it encodes the prompt once, and what differs between
    their pictures is the setting and not the machine. A server that is lost leaves its jobs to the others.

    Raises:
        GraphError: ComfyUI refuses the workflow or a node fails.
        ServerLost: none is left and jobs are not done.
    """
    from tqdm import tqdm

    for partial in folder.glob("*/.*.partial"):  # from a kill in the middle of a write
        partial.unlink()
    done = finished(folder)
    left = [job for job in jobs if job not in done]
    todo = deque(list(same) for _, same in itertools.groupby(left, lambda job: (job.set, job.prompt)))
    bar = tqdm(total=len(jobs), initial=len(jobs) - len(left), desc="drawing", unit="prompt", smoothing=0.05)
    drawing = _Drawing(todo, folder, graph, bar.update)
    alive = list(servers)
    with bar, ThreadPoolExecutor(len(alive)) as pool:
        try:
            while todo:
                lost = list(pool.map(drawing.work, alive))
                for error in filter(None, lost):
                    print(error, file=sys.stderr)
                alive = [server for server, error in zip(alive, lost) if error is None]
                if not alive:
                    first = next(filter(None, lost))
                    raise ServerLost(f"{first}. What is drawn is kept: the same command goes on from here")
        except BaseException:
            drawing.stop.set()
            raise


def _keep(pictures: Sequence[bytes], references: Sequence[dict[str, str]], folder: Path, job: Job) -> None:
    into = folder / job.folder
    into.mkdir(parents=True, exist_ok=True)
    for n, (picture, reference) in enumerate(zip(pictures, references), start=1):
        write_bytes(
            into / f"{job.set}-{job.prompt:05d}-{n}of{len(pictures)}{Path(reference['filename']).suffix}", picture
        )
