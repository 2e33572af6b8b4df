"""Where a slot lies in a text encoder's output. Data only: `nodes/encoders` finds it, alignment files carry it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Mapping


@dataclass(frozen=True)
class Place:
    """Where a slot lies in an encoder's output, and where the prompt is in it.

    Attributes:
        tensor: its name in the output: `cond`, `pooled_output`, `conditioning_llama3`, ...
        keys: the tokenizers whose prompt it holds.
        columns: the tensor's last dimension.
        width: how many of them, from the first, this slot uses.
        layer: which of the stacked layers of a tensor [B, L, T, W].
        part, parts: which of the segments that are joined along the tokens.
        start, length: where the segment lay, and how long it was, for the probe prompt.
        narrower: the width of the other segments, if less.
        shift, cropped: tokens that the encoder drops at the front and at the end.
        trimmed: padding on the left is dropped too.
        before, after: attended states around the content, in each chunk.
        chunk: tokens per chunk, where long prompts are cut into several; else 0.
        unmasked: it is padded, and neither a mask nor zeros tell where.
        stride: states of each token: 1, but where an encoder gives each a key and a value of its own.
        past: what carries the prompt past these states: its name, that of its tokens' weights, and its tokenizer's.
    """

    tensor: str
    keys: tuple[str, ...]
    columns: int
    width: int
    layer: int | None = None
    part: int = 0
    parts: int = 1
    start: int = 0
    length: int = 0
    narrower: int = 0
    shift: int = 0
    trimmed: bool = False
    before: int = 0
    after: int = 0
    chunk: int = 0
    unmasked: bool = False
    cropped: int = 0
    past: tuple[tuple[str, str, str], ...] = ()
    stride: int = 1

    @property
    def name(self) -> str:
        """The slot's name."""
        part = f":{'+'.join(self.keys)}" if self.parts > 1 else ""
        return f"{self.tensor}{part}" + ("" if self.layer is None else f"[{self.layer}]")

    def pack(self) -> dict[str, Any]:
        """As metadata."""
        packed = {**asdict(self), "keys": list(self.keys), "past": [list(names) for names in self.past]}
        return {name: value for name, value in packed.items() if name != "stride" or value != 1}

    @classmethod
    def unpack(cls, value: Mapping[str, Any]) -> "Place":
        """The reverse of `pack`, after `is_packed_place`."""
        past = tuple((name, weights, key) for name, weights, key in value.get("past", ()))
        return cls(**{**value, "keys": tuple(value["keys"]), "past": past})


_LATER = {"cropped": 0, "past": [], "stride": 1}
"""Fields that older files lack."""

_REQUIRED = {f.name for f in fields(Place)} - set(_LATER)


def is_packed_place(value: Any, slot: str, width: int) -> bool:
    """Whether metadata is what a place of this slot, `width` wide, is made of."""
    if not isinstance(value, dict) or not _REQUIRED <= set(value) <= {f.name for f in fields(Place)}:
        return False
    value = {**_LATER, **value}
    if not isinstance(value["tensor"], str):
        return False
    keys, layer = value["keys"], value["layer"]
    flags = all(isinstance(value[name], bool) for name in ("trimmed", "unmasked"))
    numbers = set(value) - {"tensor", "keys", "layer", "trimmed", "unmasked", "past"}
    sizes = all(
        type(value[name]) is int and (-100_000 if name == "shift" else 0) <= value[name] < 1_000_000 for name in numbers
    )
    past = value["past"]
    texts = _are_texts(keys) and isinstance(past, list) and all(_are_texts(names) and len(names) == 3 for names in past)
    if not (flags and sizes and texts and (layer is None or (type(layer) is int and 0 <= layer < 1000))):
        return False
    return (
        value["stride"] > 0
        and value["width"] == width <= value["columns"]
        and value["part"] < value["parts"]
        and Place.unpack(value).name == slot
    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
