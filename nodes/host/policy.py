"""What a host asks for, as a file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Mapping

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
        client_header, budgets: the header in which the host's proxy says of what class a client is, and budgets by class; who
            is of none has `budget`.
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
    client_header: str | None = None
    budgets: Mapping[str, float] = field(default_factory=dict)

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
    known = [one.name for one in fields(Policy)]
    unknown = sorted(set(content) - set(known))
    if unknown or "direction" not in content:
        raise PolicyError(
            f"{path}: {'unknown: ' + ', '.join(unknown) if unknown else 'it names no direction'}; known: {', '.join(known)}"
        )
    _check_kinds(path, content)
    also = tuple(content.pop("also", ()))
    try:
        if also:
            names_of(also)
    except ValueError as error:
        raise PolicyError(f"{path}: also: {error}") from None
    policy = Policy(**content, also=also)
    if policy.mode not in MODES or policy.on_flag not in ("steer", "refuse", "report"):
        raise PolicyError(f"{path}: mode is one of {', '.join(MODES)} and on_flag is steer, refuse or report")
    if policy.log_prompts not in PROMPTS:
        raise PolicyError(f"{path}: log_prompts is one of {', '.join(PROMPTS)}")
    if policy.negatives not in ("steer", "keep"):
        raise PolicyError(f"{path}: negatives is steer or keep")
    if bool(policy.budgets) != bool(policy.client_header):
        raise PolicyError(f"{path}: client_header and budgets need each other")
    if not (-20 <= policy.alpha <= 20 and all(0 <= budget <= 1 for budget in (policy.budget, *policy.budgets.values()))):
        raise PolicyError(f"{path}: alpha is -20 to 20 benign spreads and budget a share from 0 to 1")
    return policy


def _check_kinds(path: str | Path, content: Mapping[str, Any]) -> None:
    """Raise PolicyError for a value that is no text, number or whatever its name wants."""
    for name, value in content.items():
        if name == "also":
            right, wanted = isinstance(value, list) and all(isinstance(word, str) for word in value), "a list of words"
        elif name == "budgets":
            right, wanted = isinstance(value, dict) and all(map(_is_number, value.values())), "numbers by class of client"
        elif name in ("alpha", "budget"):
            right, wanted = _is_number(value), "a number"
        else:
            right, wanted = isinstance(value, str), "a text"
        if not right:
            raise PolicyError(f"{path}: {name} is {value!r}, not {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
