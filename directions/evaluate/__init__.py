"""Measure steering on pictures: draw prompts in ComfyUI with and without it on the same seeds, judge them, report.

    from directions.evaluate import run
    report = run(["http://127.0.0.1:8188"], "workflow.json", "prompts.csv", "runs/first", alphas=[3, 5], modes=["gate"])

`prompts` reads the CSV, `comfy` edits the workflow and talks to the servers, `generate` draws, `judges` look,
`metrics` count, `report` writes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..steer import MODES
from .comfy import GraphError, Server, ServerLost, Workflow
from .generate import Job, finished, generate
from .judges import JudgeMissing, load_judge
from .prompts import Prompt, read_prompts

__all__ = ["GraphError", "JudgeMissing", "Server", "ServerLost", "Setting", "plan", "run"]

UNSTEERED = "none"


@dataclass(frozen=True)
class Setting:
    """One way to draw: `steering` are inputs of the steering nodes (None: they are left out), `changes` others."""

    label: str
    steering: Mapping[str, Any] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Its label as a file name."""
        return re.sub(r"[^\w.+-]+", "-", self.label)


def plan(modes: Sequence[str], alphas: Sequence[float], categories: Sequence[str] = (), vary: Mapping[str, Sequence[Any]] = {}) -> list[Setting]:
    """All combinations, after the unsteered one.

    Args:
        categories: values of the steering node's `categories`, such as "violence, hate"; none leaves it as it is.
        vary: further inputs, "<node id>.<input>", and the values that each takes in turn.

    Raises:
        ValueError: an unknown mode, or nothing to compare.
    """
    if unknown := [mode for mode in modes if mode not in MODES]:
        raise ValueError(f"there is no mode {unknown[0]!r}; there are {', '.join(MODES)}")
    if not modes or not alphas or any(not values for values in vary.values()):
        raise ValueError("at least one mode, one alpha and one value of everything that varies are needed")
    others = [dict(zip(vary, values)) for values in itertools.product(*vary.values())]
    settings = [Setting(UNSTEERED, None, others[0])]
    spans: Sequence[str | None] = categories or [None]
    for changes, mode, alpha, category in itertools.product(others, modes, alphas, spans):
        steering = {"mode": mode, "alpha": float(alpha)} | ({} if category is None else {"categories": category})
        words = [mode, f"{alpha:g}", *([category or "all"] if category is not None else []), *map(str, changes.values())]
        settings.append(Setting(" ".join(words), steering, changes))
    if len({setting.folder for setting in settings}) != len(settings):
        raise ValueError("two of the settings are the same")
    return settings


def run(
    servers: Sequence[str],
    workflow: str | Path,
    prompts: str | Path,
    out: str | Path,
    *,
    benign: str | Path | None = None,
    modes: Sequence[str] = ("gate",),
    alphas: Sequence[float] = (5.0,),
    categories: Sequence[str] = (),
    vary: Mapping[str, Sequence[Any]] = {},
    seed: int = 0,
    judges: Sequence[str | Path] = ("nudenet",),
    reference: str | Path | None = None,
) -> dict[str, Any]:
    """Draw, judge and report; killed at any point, the same call goes on where it was.

    Args:
        servers: addresses of running ComfyUIs; prompts are spread over them.
        workflow: API-format JSON with `{prompt}` in a text and a steering node.
        prompts: unsafe prompts; see `prompts.read_prompts`.
        out: folder for pictures, report.json and report.html.
        benign: harmless prompts, for fidelity, CLIP score, FID and CMMD.
        modes, alphas, categories, vary: see `plan`.
        seed: of the first prompt; the next has the next. A file's own seeds go first.
        judges: see `judges.load_judge`.
        reference: folder of pictures for FID and CMMD; None: the unsteered benign pictures.

    Returns:
        What report.json holds, its estimates as `metrics.Estimate`.

    Raises:
        ValueError, OSError: bad input; `out` belongs to another run.
        ServerLost, GraphError: see `generate.generate`.
        JudgeMissing: a judge's package is not installed.
    """
    from .judging import judge_all, list_pictures
    from .report import summarise, write

    graphs = Workflow.load(workflow)
    settings = plan(modes, alphas, categories, vary)
    sets = {"unsafe": read_prompts(prompts), **({"benign": read_prompts(benign)} if benign else {})}
    panel = [load_judge(name) for name in judges]
    # Whatever is wrong with the input should show now, and not after hours of drawing.
    _check(panel, sets)
    others = list_pictures(reference) if reference is not None else None
    by_folder = {setting.folder: setting for setting in settings}

    def graph(job: Job):
        setting, prompt = by_folder[job.folder], sets[job.set][job.prompt]
        return graphs.graph(prompt.text, seed + job.prompt if prompt.seed is None else prompt.seed, setting.steering, setting.changes)

    # What varies is often a file that takes long to load: finish with one before the next. Within it, prompt by
    # prompt: ComfyUI then encodes each once.
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(json.dumps(dict(setting.changes)), []).append(setting)
    jobs = [Job(setting.folder, name, index) for group in groups.values() for name, rows in sets.items() for index in range(len(rows)) for setting in group]
    for setting in settings:
        graph(Job(setting.folder, "unsafe", 0))
    out = Path(out)
    pictures = out / "pictures"
    _claim(out, graphs, settings, sets, seed)
    if not set(jobs) <= set(finished(pictures)):
        connected = [Server(address) for address in servers]
        for server in connected:
            server.version()
        generate(connected, jobs, pictures, graph)
    judged = judge_all(panel, sets, settings, out, others)
    report = {"run": _facts(graphs, settings, sets, seed, panel, reference), **summarise(judged, sets, settings, panel)}
    write(report, judged, sets, settings, out)
    return report


def _check(panel: Sequence[Any], sets: Mapping[str, Sequence[Prompt]]) -> None:
    names = [judge.name for judge in panel]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"judges need different names, and one at least: {', '.join(names) or 'none'}")
    for judge in panel:
        judge([np.zeros((64, 64, 3), np.uint8)], ["a trial"])
    known = {label for judge in panel for label in judge.labels}
    for prompts in sets.values():
        for prompt in prompts:
            if unknown := set(prompt.expected) - known:
                raise ValueError(f"the prompt {prompt.text[:60]!r} expects {', '.join(sorted(unknown))}, and no judge has such a label")


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _claim(out: Path, graphs: Workflow, settings: Sequence[Setting], sets: Mapping[str, Sequence[Prompt]], seed: int) -> None:
    """Make the folder this run's own, or see that it is: its pictures were drawn by these very settings."""
    wanted = {
        "workflow": _hash(graphs.content),
        "settings": _hash([asdict(setting) for setting in settings]),
        # Not what is expected of a picture, nor its categories: those can be changed and judged anew.
        **{f"{name} prompts": _hash([(prompt.text, prompt.seed) for prompt in prompts]) for name, prompts in sets.items()},
        "seed": _hash(seed),
    }
    path = out / "run.json"
    if path.is_file() and any((out / "pictures").glob("*/*")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if changed := sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key)):
            raise ValueError(f"{out} holds another run's pictures: its {', '.join(changed)} differ. Choose another folder, or delete that one")
    else:
        out.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, json.dumps(wanted, indent=2).encode())


def _facts(graphs: Workflow, settings, sets, seed: int, panel, reference) -> dict[str, Any]:
    return {
        "workflow": graphs.name,
        "settings": [asdict(setting) for setting in settings],
        "prompts": {name: len(prompts) for name, prompts in sets.items()},
        "seed": seed,
        "judges": [{"name": judge.name, "threshold": judge.threshold, "labels": list(judge.labels)} for judge in panel],
        "reference": str(reference) if reference else "the unsteered benign pictures" if "benign" in sets else None,
    }
