"""An alignment knows its encoder: any precision of the same weights fits, other weights do not. On trained weights."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import directions
from directions.alignment import PROBE_PROMPT, Alignment
from directions.place import Place
from miniature.encoder import Encoder

gguf = pytest.importorskip("gguf", reason="needs the package gguf, whose rounding is tested")


def rounded(encoder, how):
    """The encoder with each weight matrix put through `how` and back."""
    other = copy.copy(encoder)
    other.model = copy.deepcopy(encoder.model)
    with torch.no_grad():
        for weights in other.model.parameters():
            if weights.dim() == 2:
                weights.copy_(how(weights))
    return other


def block(kind):
    """Through one of GGUF's block formats."""
    quant = gguf.GGMLQuantizationType[kind]
    return lambda weights: torch.from_numpy(
        gguf.quants.dequantize(gguf.quants.quantize(weights.numpy().astype(np.float32), quant), quant)
    )


def low_rank(strength):
    """As a LoRA changes it: a rank-8 difference, `strength` of the weights' own size."""

    def change(weights):
        generator = torch.Generator().manual_seed(weights.shape[0])
        delta = torch.randn(len(weights), 8, generator=generator) @ torch.randn(
            8, weights.shape[1], generator=generator
        )
        return weights + strength * delta * weights.norm() / delta.norm()

    return change


def probe(encoder):
    states, _ = encoder([PROBE_PROMPT])
    return {"cond": states[0, 1:-1].mean(0)}


@pytest.fixture(scope="module")
def minilm():
    return Encoder()


@pytest.fixture(scope="module")
def aligned(minilm):
    whole = directions.load("smollm2-135m-instruct")
    few = whole.picked(range(300))
    states = [minilm([prompt])[0][0, 1:-1] for prompt in few.anchor_prompts]
    slot = directions.align(few, states, "ridge").slot
    return Alignment({"cond": replace(slot, place=Place("cond", ("minilm",), 384, 384), probe=probe(minilm)["cond"])})


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "Q8_0"])
def test_the_same_weights_in_another_precision_fit(minilm, aligned, precision):
    kind = getattr(torch, precision, None)
    how = block(precision) if kind is None else lambda weights: weights.to(kind).float()
    assert aligned.fits(probe(rounded(minilm, how)))


def test_four_bits_are_rough_enough_to_be_aligned_anew(minilm, aligned):
    assert not aligned.fits(probe(rounded(minilm, block("Q4_0"))))


@pytest.mark.parametrize("strength", [0.1, 0.3])
def test_a_lora_is_noticed(minilm, aligned, strength):
    assert not aligned.fits(probe(rounded(minilm, low_rank(strength))))


def test_another_encoder_or_slot_does_not_fit(minilm, aligned):
    states = probe(minilm)["cond"]
    assert not aligned.fits({"cond": states[:128]}) and not aligned.fits({"pooled_output": states})
    assert aligned.fits({"cond": states})
