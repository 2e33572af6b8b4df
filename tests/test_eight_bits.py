"""States in bytes: half the file, and nothing that steering would notice."""

from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import directions
from directions import DirectionFormatError
from directions.alignment import Alignment, load_aligned_encoder
from directions.eight_bits import CLOSE, eight_bits_or_half, packed, unpacked
from directions.place import Place
from directions.special_tokens import SpecialTokenBank

ROWS, WIDTH = 500, 64


def states(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, WIDTH, generator=draw) * torch.rand(WIDTH, generator=draw) * 5 + 3


@pytest.fixture
def encoder(aligned):
    """An alignment with a bank of special tokens, as an encoder has it."""
    width = aligned.slot.width
    means = torch.randn(ROWS, width, generator=torch.Generator().manual_seed(4))
    bank = SpecialTokenBank.of(means, [{-1: mean * 3, 0: mean - 1} for mean in means])
    place = Place("cond", ("l",), width, width)
    return Alignment({"cond": replace(aligned.slot, place=place, probe=torch.ones(width), special_tokens=bank)})


def test_rounding_moves_no_state_far_and_happens_once():
    before = states()
    after = eight_bits_or_half(before)
    moved = (after.float() - before).norm(dim=1) / (before - before.mean(0)).norm(dim=1).mean()
    assert 0 < moved.mean() < 0.01 and moved.max() < CLOSE
    assert torch.equal(eight_bits_or_half(after), after)


@pytest.mark.parametrize("some", [slice(None), slice(3, 90), slice(7, 8), slice(0, 0)])
def test_a_file_gives_back_what_was_rounded(some):
    kept = eight_bits_or_half(states())[some]
    assert torch.equal(unpacked(packed("bank", kept), "bank", "a file"), kept)


def test_bytes_that_a_huge_value_takes_up_are_not_used():
    spiked = states()
    spiked[5, :8] = 3e4  # as some tokens of some language models have
    assert (
        torch.equal(eight_bits_or_half(spiked), spiked.half()) and packed("bank", spiked)["bank"].dtype == torch.float16
    )


def test_an_alignment_is_half_as_large_and_reads_back_the_same(encoder, tmp_path):
    path = encoder.save(tmp_path / "bytes.safetensors")
    read = load_aligned_encoder(path).slots["cond"]
    own = encoder.slots["cond"]
    for found, made in ((read, own), (read.special_tokens, own.special_tokens)):
        for name, value in vars(made).items():
            assert not torch.is_tensor(value) or torch.equal(getattr(found, name), value), name
    with safe_open(path, framework="pt") as stream:
        kinds = {name: stream.get_slice(name).get_dtype() for name in stream.keys()}
    assert {name for name, kind in kinds.items() if kind == "I8"} == {
        "cond.bank",
        "cond.edge_prompts",
        "cond.edge_states",
    }


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("cond.bank_grid", None, "bank_grid is None"),
        ("cond.bank_grid", lambda grid: grid[:1], "bank_grid is"),
        ("cond.bank_grid", lambda grid: -grid, "negative step"),
        ("cond.bank_grid", lambda grid: grid * 1e30, "not finite"),
        ("cond.edge_states_grid", lambda grid: grid[:, :1].contiguous(), "edge_states_grid is"),
        ("cond.edge_states_grid", lambda grid: grid * 1e30, "not finite"),
        ("cond.edge_prompts", None, "there should be edge_prompts and edge_states"),
        ("cond.bank", lambda values: values.float(), "bank has dtype F32"),
        ("cond.bank", lambda values: values.half(), "in half precision none"),
    ],
)
def test_a_broken_grid_is_refused(encoder, tmp_path, name, change, words):
    path = encoder.save(tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as stream:
        tensors, metadata = {key: stream.get_tensor(key) for key in stream.keys()}, stream.metadata()
    own = tensors.pop(name)
    save_file(tensors | ({name: change(own)} if change else {}), path, metadata)
    with pytest.raises(DirectionFormatError, match=words):
        directions.load_aligned(path)
