"""The direction: what was learned once in a source model, and travels as one file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from . import files
from .direction_format import GLOBAL, LONGEST, SHORTEST, counts_fault, format_fault
from .eight_bits import packed, unpacked
from .files import DirectionFormatError

LIBRARY = Path(__file__).parent / "library"


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
        prompt_scores: how unsafe the source finds each anchor, by readers that see more than `anchor_states`, such as several
            layers: float16 [N, K], in the order of the token scores. Empty in files that carry none.
        mentions: those of the anchor prompts that name something unsafe in a harmless setting ("a poster that warns of
            heroin"; hard negatives): they teach a target what the words look like, and count for no benign level.
        near: those that are harmless and come near the line ("a nude statue in a museum"): they count for no budget.
        languages: each anchor's language; empty where all are in the source's own. One in another language is a translation:
            its states and prompt scores are its original's, and it has no token scores.
        originals: which anchor each one translates, itself where it is none: int64 [N]; empty as `languages`.
    """

    vectors: Mapping[str, Tensor]
    readers: Mapping[str, Tensor]
    anchor_states: Tensor
    anchor_prompts: tuple[str, ...]
    source: Mapping[str, Any]
    pairs: Mapping[str, Any]
    token_scores: Tensor = field(default_factory=lambda: torch.empty(0))
    token_counts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    prompt_scores: Tensor = field(default_factory=lambda: torch.empty(0))
    mentions: tuple[str, ...] = ()
    near: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    originals: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
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
    def groups(self) -> Tensor:
        """The anchor that each anchor is or translates, int64 [N]."""
        return self.originals if len(self.originals) else torch.arange(len(self.anchor_prompts))

    @property
    def mentioned(self) -> Tensor:
        """Which anchors are mentions, or translate one, bool [N]."""
        return self._among(self.mentions)

    @property
    def everyday(self) -> Tensor:
        """Which anchors a budget speaks of: neither mentions nor near the line, bool [N]."""
        return ~(self.mentioned | self._among(self.near))

    def _among(self, prompts: Sequence[str]) -> Tensor:
        known = set(prompts)
        return torch.tensor([prompt in known for prompt in self.anchor_prompts], dtype=torch.bool)[self.groups]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over vectors, readers, anchors, their kinds and scores: what an alignment depends on."""
        digest = hashlib.sha256("\n".join(self.anchor_prompts).encode())
        for group in (self.vectors, self.readers):
            for name in sorted(group):
                digest.update(name.encode() + group[name].float().numpy().tobytes())
        digest.update(self.anchor_states.half().numpy().tobytes() + self.token_scores.half().numpy().tobytes())
        digest.update(self.token_counts.numpy().tobytes())
        if self.mentioned.any():
            digest.update(self.mentioned.numpy().tobytes())
        for extra in (self.prompt_scores.half(), self.everyday if self.near else None, self.originals):
            if extra is not None and len(extra):
                digest.update(extra.numpy().tobytes())
        return digest.hexdigest()

    def picked(self, index: Sequence[int]) -> "Direction":
        """The direction with some of its anchors, in this order; translations of what is left out are left out too.

        Raises:
            ValueError: fewer than two everyday anchors are left.
        """
        own = set(index)
        rows = [i for i in index if int(self.groups[i]) in own]
        if int(self.everyday[rows].sum()) < 2:
            raise ValueError("fewer than two everyday anchors are left")
        place = {i: new for new, i in enumerate(rows)}
        counts = self.token_counts[rows] if len(self.token_counts) else self.token_counts
        scores = self.token_scores
        if len(scores):
            parts = scores.split(self.token_counts.tolist())
            scores = torch.cat([parts[i] for i in rows])
        return replace(
            self,
            anchor_states=self.anchor_states[rows],
            anchor_prompts=tuple(self.anchor_prompts[i] for i in rows),
            token_scores=scores,
            token_counts=counts,
            prompt_scores=self.prompt_scores[rows] if len(self.prompt_scores) else self.prompt_scores,
            languages=tuple(self.languages[i] for i in rows) if self.languages else (),
            originals=torch.tensor([place[int(self.groups[i])] for i in rows])
            if len(self.originals)
            else self.originals,
        )

    def beginning(self, count: int) -> "Direction":
        """The direction with about `count` of its anchors: the first, and their share of the translations.

        Anchors stand in an order of which every beginning is a good choice (`selection.chosen`).
        """
        total = len(self.anchor_prompts)
        if count >= total:
            return self
        own = int((self.groups == torch.arange(total)).sum())
        first = range(max(2, round(count * own / total)))
        translations = [i for i in range(own, total) if int(self.groups[i]) < len(first)]
        wanted = min(len(translations), max(0, count - len(first)))
        drawn = torch.linspace(0, len(translations) - 1, wanted).round().long().tolist()
        return self.picked([*first, *(translations[i] for i in drawn)])

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; `files.py` and `_fault` below say what it holds."""
        own = (self.groups == torch.arange(len(self.anchor_prompts))).nonzero().flatten()
        prompts = [self.anchor_prompts[i] for i in own.tolist()]
        tensors = {f"direction.{name}": vector.float() for name, vector in self.vectors.items()}
        tensors |= {f"reader.{name}": reader.float() for name, reader in self.readers.items()}
        tensors |= packed("anchors.states", self.anchor_states[own])
        if len(self.token_scores):
            whole = len(self.token_counts) == len(self.anchor_prompts)
            counts = (self.token_counts[own] if whole else self.token_counts).float()
            tensors |= {"anchors.token_scores": self.token_scores.half(), "anchors.token_counts": counts}
        if len(self.prompt_scores):
            tensors["anchors.prompt_scores"] = self.prompt_scores[own].half()
        metadata: dict[str, Any] = {
            "source": dict(self.source),
            "categories": list(self.categories),
            "anchor_prompts": prompts,
            "pairs": dict(self.pairs),
            "licence": self.licence,
            "created": self.created,
            "tool_version": self.tool_version,
        }
        for name, chosen in (("mentions", set(self.mentions)), ("near", set(self.near))):
            if kept := [prompt for prompt in prompts if prompt in chosen]:
                metadata[name] = kept
        if len(own) < len(self.anchor_prompts):
            place = {index: i for i, index in enumerate(own.tolist())}
            rows = zip(self.languages, self.groups.tolist(), self.anchor_prompts)
            metadata["translations"] = [
                [language, place[original], prompt]
                for i, (language, original, prompt) in enumerate(rows)
                if original != i
            ]
        fault = format_fault({name: (_CODES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}, metadata)
        if fault:
            raise ValueError(f"can't save this direction: {fault}")
        return files.write(path, "direction", tensors, metadata)


_CODES = {torch.float16: "F16", torch.float32: "F32", torch.int8: "I8"}


def read_direction(path: str | Path) -> Direction:
    """Read and check a direction file.

    Raises:
        DirectionFormatError: what is wrong with the file, and where.
    """
    path = Path(path)
    tensors, metadata = files.read(path, {"direction": format_fault})
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
    scores = tensors.get("anchors.token_scores", torch.empty(0))
    counts = tensors.get("anchors.token_counts", torch.empty(0))
    if fault := counts_fault(counts, len(scores)):
        raise DirectionFormatError(f"{path.name}: {fault}")
    translations = metadata.get("translations", [])
    own = len(metadata["anchor_prompts"])
    originals = torch.tensor(
        [*range(own), *(index for _, index, _ in translations)] if translations else [], dtype=torch.long
    )
    of_prompts = tensors.get("anchors.prompt_scores", torch.empty(0))
    states = unpacked(tensors, "anchors.states", path.name)
    return Direction(
        vectors=named["direction."],
        readers=named["reader."],
        anchor_states=states[originals] if translations else states,
        anchor_prompts=(*metadata["anchor_prompts"], *(prompt for _, _, prompt in translations)),
        token_scores=scores,
        token_counts=torch.cat([counts.long(), torch.zeros(len(translations) if len(counts) else 0, dtype=torch.long)]),
        prompt_scores=of_prompts[originals] if len(of_prompts) and translations else of_prompts,
        mentions=tuple(metadata.get("mentions", ())),
        near=tuple(metadata.get("near", ())),
        languages=(*["en"] * own, *(language for language, _, _ in translations)) if translations else (),
        originals=originals,
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
