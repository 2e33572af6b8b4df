"""Safety directions: estimate once in a language model, align to any text encoder, steer its conditioning.

import directions
d = directions.load("smollm2-135m-instruct")
aligned = directions.align(d, states)        # the target's states on d.anchor_prompts
safe = aligned.steer(conditioning, mode="gate")
"""

from .align import align
from .alignment import Alignment, load_aligned
from .direction import Direction, available, load
from .estimate import estimate
from .files import DirectionFormatError
from .joining import joined
from .steer import SteeringSettings
from .words import UnclearWords, from_words

__all__ = [
    "Alignment",
    "Direction",
    "DirectionFormatError",
    "SteeringSettings",
    "UnclearWords",
    "align",
    "available",
    "estimate",
    "from_words",
    "joined",
    "load",
    "load_aligned",
]
