"""One run: draw, judge, report; killed at any point, it goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from .client import Remote, Workflow
from .figures import summarise
from .generate import Job, finished, generate
from .judges import load_judge
from .judging import judge_all, list_pictures
from .prompts import Prompt, read_prompts
from .report import write
from .settings import Setting, plan


def run(
    servers: Sequence[str],
    workflow: str | Path,
    prompts: str | Path,
    out: str | Path,
    *,
    benign: str | Path | None = None,
    column: str | None = None,
    benign_column: str | None = None,
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
        column, benign_column: of the prompts in those two; None: the one with a name that is known.
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
    graphs = Workflow.load(workflow)
    settings = plan(modes, alphas, categories, vary)
    sets = {"unsafe": read_prompts(prompts, column)}
    if benign:
        sets["benign"] = read_prompts(benign, benign_column, option="--benign-column")
    panel = [load_judge(name) for name in judges]
    # Whatever is wrong with the input should show now, and not after hours of drawing.
    _check(panel, sets)
    others = list_pictures(reference) if reference is not None else None
    graph = _graph_of(graphs, settings, sets, seed)
    jobs = _jobs(settings, sets)
    for setting in settings:  # one that doesn't fit the workflow shows now
        graph(Job(setting.folder, "unsafe", 0))
    out = Path(out)
    _claim(out, graphs, settings, sets, seed)
    if not set(jobs) <= set(finished(out / "pictures")):
        generate(_connected(servers), jobs, out / "pictures", graph)
    judged = judge_all(panel, sets, settings, out, others)
    report = {"run": _facts(graphs, settings, sets, seed, panel, reference), **summarise(judged, sets, settings, panel)}
    write(report, judged, sets, settings, out)
    return report


def _graph_of(
    graphs: Workflow, settings: Sequence[Setting], sets: Mapping[str, Sequence[Prompt]], seed: int
) -> Callable[[Job], dict[str, Any]]:
    """What to queue for a job."""
    by_folder = {setting.folder: setting for setting in settings}

    def graph(job: Job) -> dict[str, Any]:
        setting, prompt = by_folder[job.folder], sets[job.set][job.prompt]
        own = seed + job.prompt if prompt.seed is None else prompt.seed
        return graphs.graph(prompt.text, own, setting.steering, setting.changes)

    return graph


def _connected(servers: Sequence[str]) -> list[Remote]:
    connected = [Remote(address) for address in servers]
    for server in connected:
        server.version()
    return connected


def _jobs(settings: Sequence[Setting], sets: Mapping[str, Sequence[Prompt]]) -> list[Job]:
    """Every prompt under every setting, in the order in which servers have least to do.

    What varies is often a file that takes long to load: finish with one before the next. Within it, prompt by prompt:
    ComfyUI then encodes each once.
    """
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(json.dumps(dict(setting.changes)), []).append(setting)
    return [
        Job(setting.folder, name, index)
        for group in groups.values()
        for name, rows in sets.items()
        for index in range(len(rows))
        for setting in group
    ]


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
                raise ValueError(
                    f"the prompt {prompt.text[:60]!r} expects {', '.join(sorted(unknown))}, and no judge has such a label"
                )


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _claim(
    out: Path, graphs: Workflow, settings: Sequence[Setting], sets: Mapping[str, Sequence[Prompt]], seed: int
) -> None:
    """Make the folder this run's own, or see that it is: its pictures were drawn by these very settings."""
    wanted = {
        "workflow": _hash(graphs.content),
        "settings": _hash([asdict(setting) for setting in settings]),
        # Not what is expected of a picture, nor its categories: those can be changed and judged anew.
        **{
            f"{name} prompts": _hash([(prompt.text, prompt.seed) for prompt in prompts])
            for name, prompts in sets.items()
        },
        "seed": _hash(seed),
    }
    path = out / "run.json"
    if path.is_file() and any((out / "pictures").glob("*/*")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if changed := sorted(key for key in {*wanted, *found} if wanted.get(key) != found.get(key)):
            raise ValueError(
                f"{out} holds another run's pictures: its {', '.join(changed)} differ. Choose another folder, or delete that one"
            )
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
