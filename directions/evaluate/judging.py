"""Have the judges look at a run's pictures. What they said is kept per judge, setting and set, so that a kill costs little."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from .client import PICTURES
from .generate import Job, finished
from .judges import Judge, Picture, Verdict
from .prompts import Prompt

if TYPE_CHECKING:
    from .settings import Setting

BATCH = 32


@dataclass
class Judged:
    """The pictures of one set under one setting, and what is said about them.

    Attributes:
        paths: in order of the prompts.
        owner: [pictures], each one's prompt.
        digests: a hash of each one's pixels.
        verdicts: by judge.
    """

    paths: list[Path]
    owner: np.ndarray
    digests: list[str]
    verdicts: dict[str, Verdict]


@dataclass
class Evidence:
    """All that was judged: by (setting's label, set), and the reference's features by judge."""

    judged: dict[tuple[str, str], Judged]
    reference: dict[str, np.ndarray]


def read_picture(path: Path) -> Picture:
    """Its pixels, uint8 [height, width, 3].

    Raises:
        ValueError: it isn't a picture, or is damaged.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read ({error}): delete it and run again") from None


def list_pictures(folder: str | Path) -> list[Path]:
    """All pictures in a folder and those in it.

    Raises:
        ValueError: fewer than two, which make no reference.
    """
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in PICTURES)
    if len(paths) < 2:
        raise ValueError(
            f"there are no pictures in the reference folder {folder} ({', '.join(PICTURES)}; two at least)"
        )
    return paths


def judge_all(
    panel: Sequence[Judge],
    sets: Mapping[str, Sequence[Prompt]],
    settings: Sequence[Setting],
    out: Path,
    reference: Sequence[Path] | None,
) -> Evidence:
    """Judge everything a run drew, and the reference pictures; without those, the unsteered benign ones are the reference."""
    from tqdm import tqdm

    done = finished(out / "pictures")
    evidence = Evidence({}, {})
    total = sum(len(paths) for paths in done.values()) * len(panel)
    with tqdm(total=total, desc="judging", unit="picture", smoothing=0.05) as bar:
        for setting in settings:
            for name, prompts in sets.items():
                rows = [
                    (path, index) for index in range(len(prompts)) for path in done[Job(setting.folder, name, index)]
                ]
                paths, owner = [path for path, _ in rows], np.array([index for _, index in rows])
                digests = [hashlib.sha256(read_picture(path).tobytes()).hexdigest() for path in paths]
                judged = Judged(paths, owner, digests, {})
                for judge in panel:
                    key = hashlib.sha256("\n".join([judge.fingerprint, *digests]).encode()).hexdigest()[:16]
                    kept = out / "judged" / f"{setting.folder}-{name}-{judge.name}-{key}.npz"
                    texts = [prompts[index].text for index in owner]
                    judged.verdicts[judge.name] = _recall(kept) or _judge(judge, paths, texts, kept)
                    bar.update(len(paths))
                evidence.judged[setting.label, name] = judged
    if reference is not None:
        for judge in panel:
            features = _look(judge, reference, None).features
            if features is not None:
                evidence.reference[judge.name] = features
    elif "benign" in sets:
        for judge in panel:
            features = evidence.judged[settings[0].label, "benign"].verdicts[judge.name].features
            if features is not None:
                evidence.reference[judge.name] = features
    return evidence


def _recall(path: Path) -> Verdict | None:
    if not path.is_file():
        return None
    with np.load(path) as kept:
        return Verdict(**{name: kept[name] for name in kept.files})


def _judge(judge: Judge, paths: Sequence[Path], prompts: Sequence[str], kept: Path) -> Verdict:
    verdict = _look(judge, paths, prompts)
    stream = io.BytesIO()
    np.savez(stream, **{name: value for name, value in asdict(verdict).items() if value is not None})
    kept.parent.mkdir(exist_ok=True)
    files.write_bytes(kept, stream.getvalue())
    return verdict


def _look(judge: Judge, paths: Sequence[Path], prompts: Sequence[str] | None) -> Verdict:
    parts = []
    for start in range(0, len(paths), BATCH):
        pictures = [read_picture(path) for path in paths[start : start + BATCH]]
        parts.append(judge(pictures, prompts[start : start + BATCH] if prompts is not None else None))
    columns: dict[str, Any] = {name: [asdict(part)[name] for part in parts] for name in asdict(parts[0])}
    return Verdict(**{name: np.concatenate(values) for name, values in columns.items() if values[0] is not None})
