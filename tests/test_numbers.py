"""What comes out is finite, the same in every precision within its rounding, and the same bits twice."""

from dataclasses import replace

import pytest
import torch

import directions

MODES = ("add", "project", "gate", "graded")
FP8 = [torch.float8_e4m3fn, torch.float8_e5m2]


def steered(aligned, states, mode, **how):
    return aligned.steer(states, alpha=4.0, mode=mode, budget=0.05, **how)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *FP8])
def test_every_precision_agrees_with_float32_within_its_rounding(planted, aligned, mode, dtype):
    states = planted.unsafe.to(dtype)
    exact, found = steered(aligned, states.float(), mode), steered(aligned, states, mode)
    assert found.dtype == dtype and not torch.equal(found.float(), states.float())
    # One rounding of the result, at its own size.
    assert (
        (found.float() - exact).abs() <= torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).smallest_normal
    ).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float16, *FP8])
@pytest.mark.parametrize("alpha", [1000.0, -1000.0])
def test_an_overflow_stops_at_the_largest_number(aligned, mode, dtype, alpha):
    states = torch.full((1, 4, aligned.slot.width), torch.finfo(dtype).max).to(dtype)
    out = aligned.steer(states, alpha=alpha, mode=mode, budget=1.0)
    assert torch.isfinite(out.float()).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tokens", [1, 10_000])
def test_prompts_of_any_length(planted, aligned, mode, tokens):
    states = planted.unsafe[:1].expand(tokens, -1).unsqueeze(0).contiguous()
    out = steered(aligned, states, mode)
    assert torch.isfinite(out).all() and out.shape == states.shape and not torch.equal(out, states)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_but_padding_is_left_alone(planted, aligned, mode):
    states = planted.unsafe.unsqueeze(0)
    nothing = torch.zeros(1, len(planted.unsafe), dtype=torch.bool)
    assert torch.equal(steered(aligned, states, mode, mask=nothing), states)
    assert steered(aligned, states[:, :0], mode).shape == (1, 0, aligned.slot.width)


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_of_mixed_lengths_comes_out_as_one_by_one(planted, aligned, mode):
    lengths = (1, 3, 5)
    batch = torch.zeros(3, 5, aligned.slot.width)
    mask = torch.zeros(3, 5, dtype=torch.bool)
    for row, length in enumerate(lengths):
        batch[row, :length] = planted.unsafe[:length]
        mask[row, :length] = True
    together = steered(aligned, batch, mode, mask=mask)
    for row, length in enumerate(lengths):
        alone = steered(aligned, planted.unsafe[:length].unsqueeze(0), mode)[0]
        assert torch.allclose(together[row, :length], alone, atol=1e-5)
        assert torch.equal(together[row, length:], batch[row, length:])


@pytest.mark.parametrize("mode", MODES)
def test_the_same_input_gives_the_same_bits(planted, mode):
    first, second = (directions.align(planted.direction, planted.states) for _ in range(2))
    assert torch.equal(steered(first, planted.unsafe, mode), steered(second, planted.unsafe, mode))


def test_states_that_half_precision_cannot_hold_still_make_a_sound_alignment(planted, tmp_path):
    huge = [rows * 1e4 for rows in planted.states]
    aligned = directions.align(planted.direction, huge)
    loaded = directions.load_aligned(aligned.save(tmp_path / "a.safetensors"))
    for mode in MODES:
        assert torch.isfinite(steered(loaded, planted.unsafe * 1e4, mode)).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_anchors_with_nan_are_named(planted, value):
    states = [rows.clone() for rows in planted.states]
    states[7][0, 0] = value
    with pytest.raises(ValueError, match=r"states of anchor 7 \('prompt 7'\) have NaN or infinite"):
        directions.align(planted.direction, states)


def test_readers_that_overflow_are_not_aligned_silently(planted, tmp_path):
    wild = replace(
        planted.direction,
        readers={name: reader * 3e38 / reader.abs().max() for name, reader in planted.direction.readers.items()},
    )
    aligned = directions.align(wild, planted.states)
    assert all(torch.isfinite(steered(aligned, planted.unsafe, mode)).all() for mode in MODES)
