"""The direction: what was learned once in a source model, and travels as one file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .files import DirectionFormatError

LIBRARY = Path(__file__).parent / "library"
GLOBAL = "global"
MAX_PROMPT = 2000
# Of vectors and readers: beyond, float32 sums underflow or overflow.
SHORTEST, LONGEST = 1e-12, 1e12
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_REQUIRED = ("source", "categories", "anchor_prompts", "pairs", "licence", "created", "tool_version")


@dataclass(frozen=True)
class Direction:
    """A safety direction in the space of its source model.

    Attributes:
        vectors: `global` and one vector per category, float32 [D], from unsafe to safe, unnormalised:
            the mean over pairs of pooled(safe) - pooled(unsafe) (arXiv 2606.05290, step 1).
        readers: one functional per vector, float32 [D]: state @ reader is greater for unsafe prompts.
            Empty in files that carry none; aligning then whitens the direction instead.
        anchor_states: the source's pooled states on the benign anchors, float16 [N, D].
        anchor_prompts: the N benign prompts, in the same order.
        token_scores: how unsafe the source finds each token of each anchor, in benign standard deviations: float16
            [S, K], `global` first, then the categories. Empty in files that carry none.
        token_counts: how many of the S tokens are each anchor's, [N].
        source: the model's name, the hash of its weights, layers, pooling and prompt template.
        pairs: how many pairs there were per category, and their hash.
        mentions: those of the anchor prompts that name something unsafe in a harmless setting ("a poster that warns of
            heroin"): they teach a target what the words look like, and count for no benign level.
    """

    vectors: Mapping[str, Tensor]
    readers: Mapping[str, Tensor]
    anchor_states: Tensor
    anchor_prompts: tuple[str, ...]
    source: Mapping[str, Any]
    pairs: Mapping[str, Any]
    token_scores: Tensor = field(default_factory=lambda: torch.empty(0))
    token_counts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    mentions: tuple[str, ...] = ()
    licence: str = ""
    created: str = ""
    tool_version: str = ""
    name: str = field(default="", compare=False)

    @property
    def categories(self) -> tuple[str, ...]:
        """The category names, without `global`, sorted."""
        return tuple(sorted(name for name in self.vectors if name != GLOBAL))

    @property
    def width(self) -> int:
        """D, the source feature width (layers concatenated)."""
        return self.anchor_states.shape[1]

    @property
    def mentioned(self) -> Tensor:
        """Which anchors are mentions, bool [N]."""
        named = set(self.mentions)
        return torch.tensor([prompt in named for prompt in self.anchor_prompts], dtype=torch.bool)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the vectors, readers, anchors, mentions and token scores: what an alignment depends on."""
        digest = hashlib.sha256("\n".join(self.anchor_prompts).encode())
        for group in (self.vectors, self.readers):
            for name in sorted(group):
                digest.update(name.encode() + group[name].float().numpy().tobytes())
        digest.update(self.anchor_states.half().numpy().tobytes() + self.token_scores.half().numpy().tobytes())
        digest.update(self.token_counts.numpy().tobytes())
        if self.mentioned.any():
            digest.update(self.mentioned.numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; `files.py` and `_fault` below say what it holds."""
        tensors = {f"direction.{name}": vector.float() for name, vector in self.vectors.items()}
        tensors |= {f"reader.{name}": reader.float() for name, reader in self.readers.items()}
        tensors["anchors.states"] = self.anchor_states.half()
        if len(self.token_scores):
            tensors |= {
                "anchors.token_scores": self.token_scores.half(),
                "anchors.token_counts": self.token_counts.float(),
            }
        metadata = {
            "source": dict(self.source),
            "categories": list(self.categories),
            "anchor_prompts": list(self.anchor_prompts),
            "pairs": dict(self.pairs),
            "licence": self.licence,
            "created": self.created,
            "tool_version": self.tool_version,
        }
        if self.mentioned.any():
            metadata["mentions"] = [
                prompt for prompt, mentioned in zip(self.anchor_prompts, self.mentioned) if mentioned
            ]
        fault = _fault(
            {name: ("F16" if t.dtype == torch.float16 else "F32", tuple(t.shape)) for name, t in tensors.items()},
            metadata,
        )
        if fault:
            raise ValueError(f"can't save this direction: {fault}")
        return files.write(path, "direction", tensors, metadata)


def is_name(text: Any) -> bool:
    """Whether `text` can be a category: lower-case letters, digits, "_" and "-"; at most 64."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    missing = [key for key in _REQUIRED if key not in metadata]
    if missing:
        return f"the metadata lacks {missing}"
    if not isinstance(metadata["source"], dict) or not isinstance(metadata["source"].get("model"), str):
        return "the metadata's source does not name a model"
    if not isinstance(metadata["pairs"], dict):
        return "the metadata's pairs are not an object"
    if not all(isinstance(metadata[key], str) for key in ("licence", "created", "tool_version")):
        return "the metadata's licence, created and tool_version are not text"
    names = metadata["categories"]
    if not isinstance(names, list) or not all(map(is_name, names)) or len(set(names)) != len(names) or GLOBAL in names:
        return "the metadata's categories are not a list of distinct short names"
    expected = {f"direction.{name}" for name in (GLOBAL, *names)} | {"anchors.states"}
    readers = {f"reader.{name}" for name in (GLOBAL, *names)}
    if any(name.startswith("reader.") for name in entries):
        expected |= readers
    if any(name.startswith("anchors.token_") for name in entries):
        expected |= {"anchors.token_scores", "anchors.token_counts"}
    if set(entries) != expected:
        return f"tensors {str(sorted(set(entries) ^ expected)[:5])[:400]} are missing or unknown"
    for name, (dtype, _) in entries.items():
        if dtype != ("F16" if name in ("anchors.states", "anchors.token_scores") else "F32"):
            return f"{name} has dtype {dtype}"
    shape = entries["anchors.states"][1]
    if len(shape) != 2 or shape[0] < 2:
        return f"anchors.states has shape {list(shape)}, not [N, D] with at least two anchors"
    if "anchors.token_scores" in expected:
        scores, counts = entries["anchors.token_scores"][1], entries["anchors.token_counts"][1]
        if len(scores) != 2 or scores[1] != len(names) + 1 or tuple(counts) != (shape[0],):
            found = f"{list(scores)} and {list(counts)}, not [S, {len(names) + 1}] and [{shape[0]}]"
            return f"anchors.token_scores and anchors.token_counts have shapes {found}"
    for name in sorted(name for name in expected if not name.startswith("anchors.")):
        if entries[name][1] != (shape[1],):
            return f"{name} has shape {list(entries[name][1])}; the anchors are {shape[1]} wide"
    prompts = metadata["anchor_prompts"]
    if (
        not isinstance(prompts, list)
        or len(prompts) != shape[0]
        or not all(isinstance(p, str) and 0 < len(p) <= MAX_PROMPT for p in prompts)
    ):
        return f"the metadata has not one prompt of 1 to {MAX_PROMPT} letters for each of the {shape[0]} anchor states"
    mentions = metadata.get("mentions", [])
    if (
        not isinstance(mentions, list)
        or not all(isinstance(p, str) for p in mentions)
        or not (named := set(mentions)) <= set(prompts)
    ):
        return "the metadata's mentions are not a list of anchor prompts"
    if sum(prompt not in named for prompt in prompts) < 2:
        return "the metadata's mentions leave fewer than two other anchors"
    return None


def read_direction(path: str | Path) -> Direction:
    """Read and check a direction file.

    Raises:
        DirectionFormatError: what is wrong with the file, and where.
    """
    path = Path(path)
    tensors, metadata = files.read(path, {"direction": _fault})
    named = {
        kind: {name.removeprefix(kind): tensor for name, tensor in tensors.items() if name.startswith(kind)}
        for kind in ("direction.", "reader.")
    }
    for kind, group in named.items():
        for name, vector in group.items():
            if not SHORTEST < vector.norm() < LONGEST:
                raise DirectionFormatError(
                    f"{path.name}: {kind}{name} is {vector.norm():.3g} long (all zeros, or nothing that was learned)"
                )
    counts = tensors.get("anchors.token_counts", torch.empty(0)).long()
    scores = tensors.get("anchors.token_scores", torch.empty(0))
    # The largest is looked at too: a sum of large ones goes round to a small number.
    if len(counts) and (
        counts.min() < 1
        or counts.max() > len(scores)
        or counts.sum() != len(scores)
        or (counts != tensors["anchors.token_counts"]).any()
    ):
        raise DirectionFormatError(
            f"{path.name}: anchors.token_counts are not whole numbers that add up to the {len(scores)} token scores"
        )
    return Direction(
        vectors=named["direction."],
        readers=named["reader."],
        anchor_states=tensors["anchors.states"],
        anchor_prompts=tuple(metadata["anchor_prompts"]),
        token_scores=scores,
        token_counts=counts,
        mentions=tuple(metadata.get("mentions", ())),
        name=path.stem,
        **{key: metadata[key] for key in ("source", "pairs", "licence", "created", "tool_version")},
    )


def available(folders: Sequence[str | Path] = ()) -> dict[str, Path]:
    """The direction files that can be loaded by name: the shipped library, then `folders`."""
    found: dict[str, Path] = {}
    for folder in (LIBRARY, *map(Path, folders)):
        for path in sorted(folder.glob("*.safetensors")):
            found.setdefault(path.stem, path)
    return found


def load(name: str | Path, folders: Sequence[str | Path] = ()) -> Direction:
    """Load a direction by the name it has in the library (or in `folders`), or by its path.

    Raises:
        FileNotFoundError: no such name or path; lists the names that there are.
        DirectionFormatError: the file is not a sound direction file.
    """
    known = available(folders)
    if str(name) in known:
        return read_direction(known[str(name)])
    if isinstance(name, Path) or str(name).endswith(".safetensors"):
        return read_direction(name)
    raise FileNotFoundError(
        f"no direction {str(name)!r}; there are: {', '.join(known) or 'none'} (or give a path to a .safetensors file)"
    )
