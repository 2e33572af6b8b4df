"""How large a file an alignment is: MiniLM's, and others of the widths of real encoders, of as many made-up states as those give."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Iterator, NamedTuple

import torch

from directions.alignment import Alignment
from directions.eight_bits import eight_bits_or_half
from directions.slot import SlotAlignment
from directions.special_tokens import SpecialTokenBank

from ..reading import alignment
from .clock import Row

SOURCE, TARGET = "smollm2-135m-instruct", "minilm"
BANK, PROMPTS = 4096, 512
"""States to land on, and prompts whose special tokens are: half of the 1,024 that are read, for that many score low enough."""


class Slot(NamedTuple):
    """Of an encoder: how wide it is, and how many special tokens of a prompt vary."""

    width: int
    special: int


ENCODERS = {
    "SD1.x": (Slot(768, 2), Slot(768, 0)),
    "SDXL": (Slot(2048, 2), Slot(1280, 0)),
    "FLUX": (Slot(4096, 2), Slot(768, 0)),
    "SD3": (Slot(2048, 2), Slot(4096, 2), Slot(2048, 0)),
}


def measure() -> Iterator[Row]:
    """Megabytes of each file, and what its states would take in half precision."""
    made = alignment(SOURCE, TARGET)
    yield _row("MiniLM, as it is", made)
    for name, slots in ENCODERS.items():
        yield _row(name, Alignment({f"slot{i}": _widened(made.slot, slot, i) for i, slot in enumerate(slots)}))


def _row(name: str, made: Alignment) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        size = made.save(Path(folder) / "aligned.safetensors").stat().st_size
    states = sum(slot.bank.numel() for slot in made.slots.values())
    special = [slot.special_tokens for slot in made.slots.values() if slot.special_tokens is not None]
    states += sum(own.prompts.numel() + own.states.numel() for own in special)
    return Row(name, size / 1e6, "MB", detail=f"{(size + states) / 1e6:.1f} MB in half precision")


def _widened(slot: SlotAlignment, size: Slot, seed: int) -> SlotAlignment:
    """A slot of another width, of made-up numbers."""
    draw = torch.Generator().manual_seed(seed)
    wide = {
        name: torch.randn(*value.shape[:-1], size.width, generator=draw)
        for name, value in vars(slot).items()
        if torch.is_tensor(value) and value.shape[-1] == slot.width and name != "bank"
    }
    wide["bank"] = eight_bits_or_half(torch.randn(BANK, size.width, generator=draw))
    means = torch.randn(PROMPTS, size.width, generator=draw)
    special = SpecialTokenBank.of(means, [dict.fromkeys(range(size.special), mean) for mean in means])
    spaced = {"bank_spacing": torch.ones(BANK), "special_tokens": special if size.special else None}
    return replace(slot, **wide, **spaced)
