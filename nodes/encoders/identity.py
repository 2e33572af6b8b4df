"""Know a text encoder again without running it: by its classes, tokens, weights and patches."""

from __future__ import annotations

import hashlib
from typing import Any, Mapping

import comfyui_version
import torch

from ...directions.alignment import PROBE_PROMPT
from .templates import kind_of, numbers_of, streams

SAMPLES = 256  # values of each tensor; training or a LoRA changes nearly all of them
PLAIN = {"manual_cast_dtype"}  # what ComfyUI patches into every text encoder


class _Unknown(Exception):
    pass


def identify(clip: Any) -> str | None:
    """A short hash of what decides a CLIP's states; None where something in it can't be told by its weights, such as
    hooks or another pack's patch."""
    patcher, model = clip.patcher, clip.cond_stage_model
    if any(
        getattr(patcher, name, None)
        for name in ("forced_hooks", "hook_patches", "injections", "weight_wrapper_patches", "wrappers")
    ):
        return None
    if getattr(clip, "apply_hooks_to_conds", None):
        return None
    if any(
        name not in PLAIN and getattr(patch, "__self__", None) is not model
        for name, patch in patcher.object_patches.items()
    ):
        return None
    classes = [f"{type(part).__module__}.{type(part).__qualname__}" for part in (model, clip.tokenizer)]
    facts = (comfyui_version.__version__, classes, clip.layer_idx, clip.tokenizer_options, _undated(clip))
    digest = hashlib.sha256(repr(facts).encode())
    try:
        for name, ((weight, *_), *patches) in sorted(clip.get_key_patches().items()):
            digest.update(name.encode())
            _add(digest, weight)
            _add(digest, patches)
    except _Unknown:
        return None
    return digest.hexdigest()[:20]


def _undated(clip: Any) -> Any:
    """The probe prompt's tokens without numbers: a template may have today's date in it, and the encoder is the same tomorrow."""
    tokens = clip.tokenize(PROBE_PROMPT)
    texts = {}
    for key, sections in streams(tokens).items():
        numbers = numbers_of(clip, key, [token[0] for section in sections for token in section])
        texts[key] = [[(kind_of(token[0], numbers), *token[1:]) for token in section] for section in sections]
    return {**tokens, **texts} if isinstance(tokens, Mapping) else tokens


def _add(digest: Any, value: Any) -> None:
    if type(value) in (torch.Tensor, torch.nn.Parameter):
        # An odd step meets every column.
        sample = value.detach().reshape(-1)[:: value.numel() // SAMPLES | 1].contiguous().cpu()
        digest.update(f"{value.dtype} {list(value.shape)}".encode() + sample.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, (tuple, list)):
        digest.update(str(len(value)).encode())
        for part in value:
            _add(digest, part)
    elif hasattr(value, "weights"):  # one of ComfyUI's weight adapters
        digest.update(type(value).__qualname__.encode())
        _add(digest, value.weights)
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(repr(value).encode())
    else:
        raise _Unknown
