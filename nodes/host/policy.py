"""What a host asks for, as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...directions.steer import MODES
from ...directions.words import names_of

PROMPTS = ("leave out", "hash", "keep")
"""What a log may hold of queued texts."""


class PolicyError(ValueError):
    """A policy that can't be followed; the message says what is wrong and where."""


@dataclass(frozen=True)
class Policy:
    """What a host asks for; the fields are those of the nodes.

    Attributes:
        direction: a name in the library or in models/safety_directions.
        also: words or phrases for what must not be drawn either, each a category of its own.
        on_flag: "steer", "refuse", or "report": nothing is steered or refused, the log says what would have been.
        negatives: of flagged negative prompts: "steer", or "keep" their force, which latents of two runs give away.
        log: a file that every flagged prompt and every graph is written to, or None.
        counts_token: who sends it may read the counts; without one nobody may.
        judge: of the pictures that are drawn: "nudenet" or a classifier in models/safety_directions, or None.
        log_prompts: whether the log holds queued texts: "leave out", "hash" or "keep".
    """

    direction: str
    method: str = "auto"
    mode: str = "gate"
    alpha: float = 5.0
    budget: float = 0.01
    categories: str = ""
    on_flag: str = "steer"
    negatives: str = "steer"
    log: str | None = None
    log_prompts: str = "leave out"
    counts_token: str | None = None
    judge: str | None = None
    also: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """As `steering_settings` takes them."""
        return {"mode": self.mode, "alpha": self.alpha, "budget": self.budget, "categories": self.categories}


def read_policy(path: str | Path) -> Policy:
    """Read and check a policy file.

    Raises:
        PolicyError: no such file, not JSON, an unknown or missing name, or a value that doesn't fit.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise PolicyError(f"{path} is not a JSON object")
    known = {field.name: field for field in fields(Policy)}
    unknown = sorted(set(content) - set(known))
    if unknown or "direction" not in content:
        raise PolicyError(
            f"{path}: {'unknown: ' + ', '.join(unknown) if unknown else 'it names no direction'}; known: {', '.join(known)}"
        )
    numbers = ("alpha", "budget")
    also = content.pop("also", [])
    if not isinstance(also, list) or not all(isinstance(word, str) for word in also):
        raise PolicyError(f"{path}: also is {also!r}, not a list of words")
    try:
        if also:
            names_of(also)
    except ValueError as error:
        raise PolicyError(f"{path}: also: {error}") from None
    for name, value in content.items():
        right = (
            isinstance(value, (int, float)) and not isinstance(value, bool)
            if name in numbers
            else isinstance(value, str)
        )
        if not right:
            raise PolicyError(f"{path}: {name} is {value!r}, not a {'number' if name in numbers else 'text'}")
    policy = Policy(**content, also=tuple(also))
    if policy.mode not in MODES or policy.on_flag not in ("steer", "refuse", "report"):
        raise PolicyError(f"{path}: mode is one of {', '.join(MODES)} and on_flag is steer, refuse or report")
    if policy.log_prompts not in PROMPTS:
        raise PolicyError(f"{path}: log_prompts is one of {', '.join(PROMPTS)}")
    if policy.negatives not in ("steer", "keep"):
        raise PolicyError(f"{path}: negatives is steer or keep")
    if not (-20 <= policy.alpha <= 20 and 0 <= policy.budget <= 1):
        raise PolicyError(f"{path}: alpha is -20 to 20 benign spreads and budget a share from 0 to 1")
    return policy
