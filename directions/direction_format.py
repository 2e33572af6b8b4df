"""What a direction file must hold: the check of its header, before anything is allocated."""

from __future__ import annotations

import re
from typing import Any, Mapping

from torch import Tensor

GLOBAL = "global"
GRID = "anchors.states_grid"

MAX_PROMPT = 2000
"""Letters."""

SHORTEST, LONGEST = 1e-12, 1e12
"""Of vectors and readers: beyond, float32 sums underflow or overflow."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}")
_REQUIRED = ("source", "categories", "anchor_prompts", "pairs", "licence", "created", "tool_version")
_HALF = ("anchors.states", "anchors.token_scores", "anchors.prompt_scores")


def is_name(text: Any) -> bool:
    """Whether `text` can be a category: lower-case letters, digits, "_" and "-"; at most 64."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_language(text: Any) -> bool:
    """Whether `text` is a language's code, as in BCP 47: en, pt, zh-Hans."""
    return isinstance(text, str) and _LANGUAGE.fullmatch(text) is not None


def format_fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with a direction file, from its tensors' dtypes and shapes and its metadata; None where nothing is."""
    return _facts_fault(metadata) or _tensors_fault(entries, metadata) or _anchors_fault(entries, metadata)


def counts_fault(counts: Tensor, scores: int) -> str | None:
    """What is wrong with the numbers of token scores per anchor, or None."""
    if not len(counts):
        return None
    whole = counts.long()
    # The largest is looked at too: a sum of large ones goes round to a small number.
    if whole.min() < 1 or whole.max() > scores or whole.sum() != scores or (whole != counts).any():
        return f"anchors.token_counts are not whole numbers that add up to the {scores} token scores"
    return None


def _facts_fault(metadata: Mapping[str, Any]) -> str | None:
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
    return None


def _tensors_fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    names = (GLOBAL, *metadata["categories"])
    expected = {f"direction.{name}" for name in names} | {"anchors.states"}
    if any(name.startswith("reader.") for name in entries):
        expected |= {f"reader.{name}" for name in names}
    if any(name.startswith("anchors.token_") for name in entries):
        expected |= {"anchors.token_scores", "anchors.token_counts"}
    eight_bits = entries.get("anchors.states", ("F16",))[0] == "I8"
    expected |= {"anchors.prompt_scores"} & set(entries) | ({GRID} if eight_bits else set())
    if set(entries) != expected:
        return f"tensors {str(sorted(set(entries) ^ expected)[:5])[:400]} are missing or unknown"
    for name, (dtype, _) in entries.items():
        if dtype != ("F16" if name in _HALF else "F32") and not (eight_bits and name == "anchors.states"):
            return f"{name} has dtype {dtype}"
    shape = entries["anchors.states"][1]
    if len(shape) != 2 or shape[0] < 2:
        return f"anchors.states has shape {list(shape)}, not [N, D] with at least two anchors"
    if "anchors.token_scores" in expected:
        scores, counts = entries["anchors.token_scores"][1], entries["anchors.token_counts"][1]
        if len(scores) != 2 or scores[1] != len(names) or tuple(counts) != (shape[0],):
            found = f"{list(scores)} and {list(counts)}, not [S, {len(names)}] and [{shape[0]}]"
            return f"anchors.token_scores and anchors.token_counts have shapes {found}"
    if "anchors.prompt_scores" in expected and entries["anchors.prompt_scores"][1] != (shape[0], len(names)):
        return (
            f"anchors.prompt_scores has shape {list(entries['anchors.prompt_scores'][1])}, not {[shape[0], len(names)]}"
        )
    if eight_bits and entries[GRID][1] != (2, shape[1]):
        return f"{GRID} has shape {list(entries[GRID][1])}, not {[2, shape[1]]}"
    for name in sorted(name for name in expected if not name.startswith("anchors.")):
        if entries[name][1] != (shape[1],):
            return f"{name} has shape {list(entries[name][1])}; the anchors are {shape[1]} wide"
    return None


def _anchors_fault(entries: Mapping[str, tuple], metadata: Mapping[str, Any]) -> str | None:
    count, prompts = entries["anchors.states"][1][0], metadata["anchor_prompts"]
    if not isinstance(prompts, list) or len(prompts) != count or not all(map(_is_prompt, prompts)):
        return f"the metadata has not one prompt of 1 to {MAX_PROMPT} letters for each of the {count} anchor states"
    named: dict[str, set[str]] = {}
    for kind in ("mentions", "near"):
        some = metadata.get(kind, [])
        if not isinstance(some, list) or not all(isinstance(p, str) for p in some) or not set(some) <= set(prompts):
            return f"the metadata's {kind} are not a list of anchor prompts"
        named[kind] = set(some)
    if sum(prompt not in named["mentions"] | named["near"] for prompt in prompts) < 2:
        return "the metadata's mentions leave fewer than two other anchors"
    translations = metadata.get("translations", [])
    if not isinstance(translations, list) or not all(_is_translation(one, count) for one in translations):
        return "the metadata's translations are not a list of [language, number of an anchor, prompt]"
    return None


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_PROMPT


def _is_translation(value: Any, count: int) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    language, original, prompt = value
    known = is_language(language)
    return known and type(original) is int and 0 <= original < count and _is_prompt(prompt)
