"""One conditioning under many settings, with progress."""

from __future__ import annotations

from typing import Iterable, Iterator, NamedTuple, Sequence

import comfy.model_management
import comfy.utils

from ...directions.alignment import Alignment
from ...directions.steer import SteeringSettings
from .marks import before_steering
from .reading import Reading, inspect_conditioning
from .steering import steer_conditioning


class Swept(NamedTuple):
    """One setting's outcome."""

    settings: SteeringSettings
    conditioning: list
    reading: Reading


def sweep_conditioning(conditioning: list, aligned: Alignment, settings: Sequence[SteeringSettings]) -> list[Swept]:
    """Steer a conditioning under each of the settings; what this direction already steered counts as it was before.

    Raises:
        ValueError: the conditioning or a setting doesn't fit the alignment; says what was expected and found.
    """
    unsteered = [list(before_steering((cond, extras), aligned) or (cond, extras)) for cond, extras in conditioning]
    done = []
    for one in progress(settings, len(settings)):
        steered = steer_conditioning(unsteered, aligned, one)
        done.append(Swept(one, steered, inspect_conditioning(steered, aligned, one.budget)[0]))
    return done


def progress(items: Iterable, total: int, label: str = "") -> Iterator:
    """The items, with ComfyUI's progress bar on the node that is running; Interrupt stops between two of them."""
    bar = comfy.utils.ProgressBar(total)
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)
