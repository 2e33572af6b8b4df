"""Very wide states: what is fitted in their leading directions, and the memory that it takes."""

import importlib

import pytest
import torch

import directions
from benchmarks.speed.wide import measured
from directions.slot import SlotAlignment
from directions.wide import WideStates, leading, separate, widened

align_module = importlib.import_module("directions.align")
wide_module = importlib.import_module("directions.wide")


@pytest.fixture
def stack():
    """States of 300 anchors, 24 tokens' worth of features seen through 400 columns of very different sizes."""
    draw = torch.Generator().manual_seed(0)
    view = torch.randn(24, 400, generator=draw) * torch.logspace(-1, 2, 400)
    return [torch.randn(6, 24, generator=draw) @ view + 3 for _ in range(300)]


@pytest.fixture
def few():
    """The shipped direction with its first 300 anchors."""
    direction = directions.load("smollm2-135m-instruct")
    return direction.picked(range(300))


def test_leading_directions_hold_states_that_have_no_more_of_them(stack):
    rows = torch.cat(stack)
    projection, inside = leading(rows.clone())
    assert inside.shape[1] == 24
    assert torch.allclose(projection(rows), inside, atol=1e-3)
    assert torch.allclose(projection.back(inside), rows, atol=1e-2 * float(rows.std()))


def test_each_column_holds_about_as_much(stack):
    _, inside = leading(torch.cat(stack))
    assert inside.var(0).max() < 3 * inside.var(0).min()


def test_a_reader_reads_the_same(stack):
    rows = torch.cat(stack)
    projection, inside = leading(rows.clone())
    readers = torch.randn(3, inside.shape[1], generator=torch.Generator().manual_seed(1))
    centre = projection.back(torch.zeros(1, inside.shape[1]))
    assert torch.allclose((rows - centre) @ projection.readers(readers).T, inside @ readers.T, atol=1e-2)


def test_steps_come_back_as_they_went_in(stack):
    means = torch.stack([rows.mean(0) for rows in stack])
    projection, inside = leading(means.clone())
    standard = wide_module.Standard.of(inside)
    step = means[:1] - means[1:2]
    narrow = (projection(means[:1]) - projection(means[1:2])) / standard.spread
    back = widened(narrow, standard(inside), means.half())
    assert torch.nn.functional.cosine_similarity(back, step).item() > 0.99


def test_solved_among_prompts_or_among_columns_it_is_the_same():
    draw = torch.Generator().manual_seed(2)
    means = torch.randn(60, 90, generator=draw) * torch.logspace(0, 1, 90)
    steps = torch.randn(3, 90, generator=draw)
    assert torch.allclose(
        separate(steps, means, align_module.SHRINKAGE), align_module.separated(steps, means), atol=1e-3
    )


def test_anchors_may_come_in_any_order(stack):
    one, other = (WideStates([True] * 300, 400) for _ in range(2))
    for index in range(300):
        one.add(index, stack[index])
    for index in [*one.order()[0], *one.order()[1]]:
        other.add(index, stack[index])
    assert torch.equal(one.means, other.means)
    for wide in (one, other):
        assert torch.allclose(wide[7], stack[7], atol=1e-2 * float(torch.cat(stack).std()))


def test_a_sample_is_drawn_evenly_and_has_its_bound(monkeypatch):
    monkeypatch.setattr(wide_module, "SAMPLE", 100 * 8)
    wide = WideStates([index % 4 != 0 for index in range(400)], 8)
    for index in range(400):
        wide.add(index, torch.full((5, 8), float(index)))
    drawn = torch.cat(wide.sample)[:, 0]
    assert 50 <= len(drawn) <= 100
    assert (drawn % 4 != 0).all() and drawn.diff().max() < 16 and drawn.max() > 380


def test_wide_states_are_aligned_like_others(few, stack, monkeypatch):
    source = few.anchor_states.float()
    draw = torch.Generator().manual_seed(3)
    states = [row + 0.3 * torch.randn(6, 576, generator=draw) for row in source]
    plain = directions.align(few, states, "ridge").slot
    monkeypatch.setattr(align_module, "WIDEST", 500)
    wide = directions.align(few, states, "ridge").slot
    assert isinstance(wide, SlotAlignment) and wide.width == 576
    assert wide.bank.shape[1] == wide.vectors.shape[1] == 576
    cosine = torch.nn.functional.cosine_similarity(wide.vectors, plain.vectors)
    assert cosine.min() > 0.9, cosine
    scores = [torch.stack([slot.prompt_scores(rows)[0] for rows in states]) for slot in (plain, wide)]
    assert torch.corrcoef(torch.stack(scores))[0, 1] > 0.95


def test_states_that_are_not_finite_are_refused_when_wide_too(few, monkeypatch):
    monkeypatch.setattr(align_module, "WIDEST", 500)
    states = few.anchor_states.float().unsqueeze(1).repeat(1, 2, 1)
    states[5] = torch.nan
    with pytest.raises(ValueError, match="states of anchor 5 have NaN"):
        directions.align(few, list(states), "ridge")


def test_the_widest_stack_there_is_takes_less_than_four_gibibytes():
    found = measured(53_248, 360, "ridge")
    assert found["gibibytes"] < 4, found
