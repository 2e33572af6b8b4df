"""A CLIP that steers what it encodes, whatever node asks it to."""

from __future__ import annotations

from typing import Any, Callable, MutableSet
from weakref import WeakSet

from ...directions.alignment import Alignment
from ...directions.steer import SteeringSettings
from .layout import Layout
from .marks import sha_of
from .steering import Steering

CLIP = "Safety Direction CLIP"
ENCODE = "encode_token_weights"
"""What every text encoder of ComfyUI is called by; patched through its own patcher."""


class _SteeredEncode:
    """A text encoder's `encode_token_weights`, steered."""

    def __init__(self, inner: Callable, steering: Steering, layout: Layout) -> None:
        self.inner = inner
        self.steering = steering
        self.layout = layout

    def __call__(self, tokens: Any, *args, **kwargs) -> tuple:
        cond, pooled, *rest = self.inner(tokens, *args, **kwargs)
        found = {**(rest[0] if rest else {}), "pooled_output": pooled}
        masks = self.layout.content(tokens, {**found, "cond": cond})
        same_text = lambda slot: self.layout.same_text(tokens, slot)
        cond, steered = self.steering((cond, found), masks, give_back=True, same_text=same_text)
        extras = dict(steered)
        return cond, extras.pop("pooled_output"), extras, *rest[1:]


def steer_clip(clip: Any, aligned: Alignment, settings: SteeringSettings, on_flag: str = "steer", node: str = CLIP) -> Any:
    """A clone of a CLIP that steers what it encodes; the same direction's earlier steering is replaced. `node` is who
    does it, for messages.

    Raises:
        ValueError: no CLIP.
    """
    _check_clip(clip)
    inner = clip.patcher.get_model_object(ENCODE)
    if isinstance(inner, _SteeredEncode) and sha_of(inner.steering.aligned) == sha_of(aligned):
        inner = inner.inner
    steering, layout = Steering(node, aligned, settings, on_flag), Layout.known(clip, aligned.places)
    steered = clip.clone()
    steered.patcher.add_object_patch(ENCODE, _SteeredEncode(inner, steering, layout))
    return steered


_BARE: MutableSet[Any] = WeakSet()
"""CLIPs that are aligned to: host mode steers every other one."""


def unsteered(clip: Any) -> Any:
    """The CLIP without any steering of ours, so that aligning never measures what was steered."""
    _check_clip(clip)
    inner = clip.patcher.get_model_object(ENCODE)
    bare = clip.clone()
    if isinstance(inner, _SteeredEncode):
        while isinstance(inner, _SteeredEncode):
            inner = inner.inner
        bare.patcher.add_object_patch(ENCODE, inner)
    _BARE.add(bare)
    return bare


def is_bare(clip: Any) -> bool:
    """Whether `unsteered` made it."""
    return clip in _BARE


def _check_clip(clip: Any) -> None:
    if clip is None:
        raise ValueError("no CLIP: this checkpoint has no text encoder; load one and connect it")
