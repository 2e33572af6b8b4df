"""Everything that knows how ComfyUI encodes prompts and hands out conditioning. The only such place in the pack.

layout     where the prompt is in what an encoder returns
alignment  fit a direction to an encoder, and keep the result
steering   conditioning, CLIP and MODEL, steered
reading    conditioning, scored
sweep      one conditioning under many settings
minilm     a trained encoder from a pip package
"""

from .alignment import align_encoder, check_encoder, fingerprint
from .minilm import load_minilm
from .reading import Reading, inspect_conditioning, prompt_words
from .steering import Refused, StaleAlignment, guard_model, is_steered, steer_clip, steer_conditioning
from .sweep import Swept, progress, sweep_conditioning

__all__ = [
    "Reading",
    "Refused",
    "StaleAlignment",
    "Swept",
    "align_encoder",
    "check_encoder",
    "fingerprint",
    "guard_model",
    "inspect_conditioning",
    "is_steered",
    "load_minilm",
    "progress",
    "prompt_words",
    "steer_clip",
    "steer_conditioning",
    "sweep_conditioning",
]
