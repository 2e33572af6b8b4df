"""Alignments that were made before, and those that somebody shared: where they lie, and which one is an encoder's."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Mapping

import folder_paths
from torch import Tensor

from ...directions.alignment import Alignment, load_aligned_encoder
from ...directions.direction import Direction
from ...directions.files import DirectionFormatError
from ...directions.place import Place

SHARED = "aligned"
"""The folder for alignments to share, in models/safety_directions."""

FORMAT = 11
"""Of what is kept; another number makes every alignment anew."""


def enough(kept: Alignment, seconds: float | None) -> bool:
    """Whether a kept alignment was made from all anchors, where all are wanted."""
    counts = next(iter(kept.slots.values())).fit.get("anchors", {})
    return seconds is not None or counts.get("read") == counts.get("all")


def shared_folders() -> list[Path]:
    """Where alignments lie that were saved or downloaded: models/safety_directions/aligned."""
    known = "safety_directions" in folder_paths.folder_names_and_paths
    return [Path(one) / SHARED for one in folder_paths.get_folder_paths("safety_directions")] if known else []


def folder() -> Path:
    """Where this ComfyUI keeps those that it made."""
    return Path(folder_paths.get_user_directory()) / "safety_directions"


def kind_of(direction: Direction, method: str) -> str:
    """Which alignments are alike but for the encoder."""
    return hashlib.sha256(f"{FORMAT} {direction.fingerprint} {method}".encode()).hexdigest()[:20]


def kind_of_words(fingerprint: str) -> str:
    """The same of typed words."""
    return hashlib.sha256(f"{FORMAT} {fingerprint} words".encode()).hexdigest()[:20]


def hash_of(probes: Mapping[str, Tensor]) -> str:
    """A name for an encoder that has no identity."""
    return hashlib.sha256(b"".join(probes[name].float().numpy().tobytes() for name in sorted(probes))).hexdigest()[:20]


def _read(path: Path, fingerprint: str) -> Alignment | None:
    try:
        aligned = load_aligned_encoder(path)
    except (FileNotFoundError, DirectionFormatError):
        return None
    return aligned if aligned.direction.get("sha256") == fingerprint else None


def kept_for(kind: str, identity: str | None, fingerprint: str) -> Alignment | None:
    """The alignment that was kept for this very encoder; nothing is encoded to find it."""
    return _read(folder() / f"{kind}-{identity}.safetensors", fingerprint) if identity else None


def kept_like(
    kind: str, direction: Direction, places: Mapping[str, Place], probes: Mapping[str, Tensor]
) -> Alignment | None:
    """An alignment that was kept for an encoder with the same states: the same weights in another precision, or in
    another file. One that somebody shared will do, too."""
    shared = [path for one in shared_folders() for path in sorted(one.glob("*.safetensors"))]
    for path in [*sorted(folder().glob(f"{kind}-*.safetensors")), *shared]:
        aligned = _read(path, direction.fingerprint)
        if aligned is not None and aligned.fits(probes) and aligned.places == places:
            return aligned
    return None
