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
from pathlib import Path
from typing import NamedTuple

from ..files import write_bytes
from .comfy import Graph, Server, ServerLost

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


def generate(servers: Sequence[Server], jobs: Sequence[Job], folder: Path, graph: Callable[[Job], Graph]) -> None:
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
    stop = threading.Event()

    def work(server: Server) -> ServerLost | None:
        waiting: deque[tuple[Job, str]] = deque()
        mine: deque[Job] = deque()
        try:
            while not stop.is_set():
                while len(waiting) < AHEAD:
                    if not mine:
                        try:
                            mine.extend(todo.popleft())
                        except IndexError:
                            break
                    waiting.append((mine[0], server.submit(graph(mine[0]))))
                    mine.popleft()
                if not waiting:
                    return None
                references = server.wait(waiting[0][1], stop.is_set)
                if references is not None:
                    _keep([server.picture(reference) for reference in references], references, folder, waiting[0][0])
                    waiting.popleft()
                    bar.update()
            return None
        except ServerLost as error:
            if waiting or mine:
                todo.appendleft([*(job for job, _ in waiting), *mine])
            waiting.clear()
            return error
        except BaseException:
            stop.set()
            raise
        finally:
            if waiting:
                with suppress(ServerLost):
                    server.cancel([prompt_id for _, prompt_id in waiting])

    alive = list(servers)
    with bar, ThreadPoolExecutor(len(alive)) as pool:
        try:
            while todo:
                lost = list(pool.map(work, alive))
                for error in filter(None, lost):
                    print(error, file=sys.stderr)
                alive = [server for server, error in zip(alive, lost) if error is None]
                if not alive:
                    raise ServerLost(f"{next(filter(None, lost))}. What is drawn is kept: the same command goes on from here")
        except BaseException:
            stop.set()
            raise


def _keep(pictures: Sequence[bytes], references: Sequence[dict[str, str]], folder: Path, job: Job) -> None:
    into = folder / job.folder
    into.mkdir(parents=True, exist_ok=True)
    for n, (picture, reference) in enumerate(zip(pictures, references), start=1):
        write_bytes(into / f"{job.set}-{job.prompt:05d}-{n}of{len(pictures)}{Path(reference['filename']).suffix}", picture)
