"""What a judge says about pictures, and what a classifier's outputs mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Verdict:
    """What a judge says about a batch; None where that judge can't say.

    Attributes:
        unsafe: [pictures], how sure it is that something unsafe is shown, 0..1.
        benign: [pictures], how sure it is of its likeliest harmless label, 0..1.
        labels: [pictures, labels], probabilities.
        features: [pictures, width], for FID and CMMD.
        clip_score: [pictures], cosine between picture and prompt.
    """

    unsafe: np.ndarray | None = None
    benign: np.ndarray | None = None
    labels: np.ndarray | None = None
    features: np.ndarray | None = None
    clip_score: np.ndarray | None = None


@dataclass(frozen=True)
class Labels:
    """What a classifier's outputs mean, from a small JSON object.

    Attributes:
        labels: a name per output, in order.
        unsafe: those of them that are unsafe.
        multi: several may be true of one picture (each is a sigmoid); otherwise exactly one is (a softmax).
        size: pixels; pictures are stretched to size x size.
        mean, std: per channel, of pixels in 0..1.
        threshold: how sure of something unsafe counts.
    """

    labels: tuple[str, ...]
    unsafe: tuple[str, ...]
    multi: bool = False
    size: int = 224
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    threshold: float = 0.5

    EXAMPLE = (
        '{"labels": ["gun", "cat"], "unsafe": ["gun"], "multi": false, "size": 224, '
        '"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "threshold": 0.5}'
    )

    @classmethod
    def parse(cls, text: str, where: str) -> Labels:
        """From JSON.

        Raises:
            ValueError: it isn't such an object; the message says what is wrong and gives an example.
        """

        def fault(what: str) -> ValueError:
            return ValueError(f"{where}: {what}. The labels should look like {cls.EXAMPLE}")

        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise fault(f"not JSON ({error})") from None
        if not isinstance(content, dict) or not {"labels", "unsafe"} <= set(content):
            raise fault("`labels` or `unsafe` is missing")
        if unknown := set(content) - set(cls.__dataclass_fields__):
            raise fault(f"nothing is known of {', '.join(sorted(unknown))}")
        for name in ("labels", "unsafe"):
            if (
                not isinstance(content[name], list)
                or not content[name]
                or not all(isinstance(label, str) for label in content[name])
            ):
                raise fault(f"`{name}` is no list of names")
        if strangers := set(content["unsafe"]) - set(content["labels"]):
            raise fault(f"unsafe labels that are no labels: {', '.join(sorted(strangers))}")
        for name in ("mean", "std"):
            numbers = content.get(name, [1.0] * 3)
            if (
                not isinstance(numbers, list)
                or len(numbers) != 3
                or not all(type(n) in (int, float) for n in numbers)
                or (name == "std" and 0 in numbers)
            ):
                raise fault(f"`{name}` is not three numbers (other than 0 for std)")
        if type(content.get("size", 1)) is not int or not 1 <= content.get("size", 1) <= 4096:
            raise fault("`size` is not a whole number of pixels")
        if type(content.get("threshold", 0.5)) not in (int, float) or type(content.get("multi", False)) is not bool:
            raise fault("`threshold` should be a number and `multi` true or false")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
        }
        return cls(**fields)

    def verdict(self, logits: np.ndarray) -> Verdict:
        """From the classifier's logits, [pictures, labels]."""
        logits = logits.astype(np.float64)
        unsafe = np.isin(self.labels, self.unsafe)
        if self.multi:
            shares = 1 / (1 + np.exp(-logits.clip(-500, 500)))
            danger = shares[:, unsafe].max(1)
        else:
            shares = np.exp(logits - logits.max(1, keepdims=True))
            shares /= shares.sum(1, keepdims=True)
            danger = shares[:, unsafe].sum(1)
        benign = shares[:, ~unsafe].max(1) if (~unsafe).any() else None
        return Verdict(unsafe=danger, benign=benign, labels=shares)
