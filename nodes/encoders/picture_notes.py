"""What a saved picture says about its steering: a note in the metadata that ComfyUI's savers write, `extra_pnginfo`.

ComfyUI hands that dict to a node that asks for it, but a node whose result is cached doesn't run and can't ask. So it is known by
its prompt's id, from the moment the prompt is queued until it is forgotten, and written to when sampling starts.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any
from weakref import WeakValueDictionary

from comfy_execution.utils import get_executing_context

from .marks import Sealed

KEY = "safety_direction"


class Metadata(dict):
    """A prompt's `extra_pnginfo`; unlike a dict it can be held weakly. ComfyUI's history keeps this very one, and no copy from
    before the run, so that the notes are found without looking into a picture."""

    def __deepcopy__(self, memo: Any) -> "Metadata":
        return self


_QUEUED: WeakValueDictionary[str, Metadata] = WeakValueDictionary()


def keep_metadata(request: dict[str, Any]) -> dict[str, Any]:
    """An on-prompt handler of ComfyUI's: know the prompt's metadata by its id. What a client wrote under our key is left out."""
    extra = request.get("extra_data") or {}
    sent = (extra.get("extra_pnginfo") or {}) if isinstance(extra, dict) else None
    if not isinstance(sent, dict):
        return request
    metadata = Metadata({name: value for name, value in sent.items() if name != KEY})
    prompt_id = request.get("prompt_id") or str(uuid.uuid4())
    _QUEUED[prompt_id] = metadata
    return {**request, "prompt_id": prompt_id, "extra_data": {**extra, "extra_pnginfo": metadata}}


def note(node: str, record: Sealed) -> None:
    """Write into the metadata of the prompt that is running how an entry was steered; nothing where none is."""
    context = get_executing_context()
    metadata = _QUEUED.get(context.prompt_id) if context else None
    if metadata is None:
        return
    said = {
        "node": node,
        "direction": str(record.aligned.direction.get("name") or record.aligned.direction.get("source")),
        **asdict(record.settings),
        "score": record.score,
        "flagged": record.flag is not None,
        "why": str(record.flag) if record.flag else "",
    }
    notes = metadata.setdefault(KEY, [])
    # A guard behind Apply finds what Apply has said.
    if all(other | {"node": ""} != said | {"node": ""} for other in notes):
        notes.append(said)
