"""Everything that knows how ComfyUI encodes prompts and hands out conditioning. The only such place in the pack.

layout     where the prompt is in what an encoder returns
alignment  fit a direction to an encoder, and keep the result
steering   conditioning, CLIP and MODEL, steered
reading    conditioning, scored
minilm     a trained encoder from a pip package
"""

from .alignment import align_encoder, check_encoder, fingerprint
from .minilm import load_minilm
from .reading import Reading, inspect_conditioning, token_labels
from .steering import Refused, guard_model, steer_clip, steer_conditioning

__all__ = [
    "Reading",
    "Refused",
    "align_encoder",
    "check_encoder",
    "fingerprint",
    "guard_model",
    "inspect_conditioning",
    "load_minilm",
    "steer_clip",
    "steer_conditioning",
    "token_labels",
]
