"""Everything that knows how ComfyUI encodes prompts and hands out conditioning. The only such place in the pack.

templates  what tokenizers put around a prompt
places     which tensors of an encoder's output hold it
past       what carries it past its states
content    which of their states are the prompt's own; padding tells padding from content
layout     the three together: found out once per CLIP, then asked
batching   many prompts in few passes
identity   know an encoder again without running it
alignment  fit a direction to an encoder, and keep the result
typed      make one of typed words
entry      an element of a conditioning list
flag       what was flagged and why
marks      what was steered is known, and can't be forged
picture_notes  what a saved picture says about it
steering   the mechanism, and a list of conditioning
clip       a CLIP that steers
guard      a MODEL that steers
reading    conditioning, scored
sweep      one conditioning under many settings
minilm     a trained encoder from a pip package
"""

from .alignment import align_encoder, check_encoder, probe_states
from .clip import steer_clip
from .entry import StaleAlignment
from .flag import Refused
from .guard import guard_model
from .kept import SHARED, enough
from .marks import flag_of, is_steered
from .minilm import load_minilm
from .picture_notes import keep_metadata
from .places import Unsteerable
from .reading import Reading, inspect_conditioning, prompt_words
from .steering import steer_conditioning
from .sweep import Swept, progress, sweep_conditioning
from .typed import Typed, add_typed, type_direction

__all__ = [
    "SHARED",
    "Reading",
    "Refused",
    "StaleAlignment",
    "Swept",
    "Typed",
    "Unsteerable",
    "add_typed",
    "align_encoder",
    "check_encoder",
    "enough",
    "flag_of",
    "guard_model",
    "inspect_conditioning",
    "is_steered",
    "keep_metadata",
    "load_minilm",
    "probe_states",
    "progress",
    "prompt_words",
    "steer_clip",
    "steer_conditioning",
    "sweep_conditioning",
    "type_direction",
]
