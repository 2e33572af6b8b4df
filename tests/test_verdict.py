"""One verdict per prompt over all of an encoder's slots, and what a budget promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import directions
from directions.verdict import FLOOR, LANDED, Calibration, Verdict


@pytest.fixture(scope="module")
def two(planted):
    """Another view of the same prompts beside the planted one, half of whose anchors it sees through noise; both aligned."""
    draw = torch.Generator().manual_seed(21)
    view = torch.randn(32, 20, generator=draw)
    noisy = [rows[:3] @ view + 8 * torch.randn(len(rows[:3]), 20, generator=draw) for rows in planted.states]
    states = {"clear": planted.states, "noisy": noisy}
    return directions.align(planted.direction, states), states, view


def prompt(states, i):
    return {name: rows[i] for name, rows in states.items()}


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2])
def test_two_slots_keep_one_budget(two, budget):
    aligned, states, _ = two
    flagged = [bool(aligned.flagged(prompt(states, i), budget)) for i in range(400)]
    assert sum(flagged) / 400 <= 1.5 * budget + 0.005


def test_a_flagged_prompt_is_steered_in_every_slot_and_another_in_none(planted, two):
    aligned, states, view = two
    unsafe = {"clear": planted.unsafe, "noisy": planted.unsafe @ view}
    moved = aligned.steer(unsafe, mode="gate")
    assert aligned.flagged(unsafe, 0.01) and all(not torch.equal(moved[name], unsafe[name]) for name in unsafe)
    for i in range(100):
        own = prompt(states, i)
        moved, flagged = aligned.steer(own, mode="gate", budget=0.05), bool(aligned.flagged(own, 0.05))
        assert {torch.equal(moved[name], own[name]) for name in own} == {not flagged}


def test_what_one_slot_alone_notices_moves_the_other_too(planted, two):
    """The noisy half of this prompt is a harmless one's."""
    aligned, states, _ = two
    mixed = {"clear": planted.unsafe, "noisy": states["noisy"][3]}
    moved = aligned.steer(mixed, mode="gate")
    assert aligned.flagged(mixed, 0.01) and not torch.equal(moved["noisy"], mixed["noisy"])


def test_two_views_of_a_prompt_say_more_than_one(planted, two):
    aligned, states, view = two
    weak = planted.unsafe / 3
    both = {"clear": weak, "noisy": weak @ view}
    alone = directions.align(planted.direction, states["noisy"])
    assert aligned.prompt_score(both) > alone.prompt_score(both["noisy"])


def test_a_conditioning_may_lack_a_slot(planted, two):
    aligned, _, _ = two
    assert aligned.flagged({"clear": planted.unsafe}, 0.01)
    with pytest.raises(ValueError, match="states of other: this alignment has clear, noisy"):
        aligned.prompt_score({"other": planted.unsafe})


def test_several_categories_share_the_budget(two):
    aligned, states, _ = two
    flagged = [bool(aligned.flagged(prompt(states, i), 0.05, ["violence", "hate"])) for i in range(400)]
    assert sum(flagged) / 400 <= 0.075


@settings(deadline=None, max_examples=50)
@given(st.integers(20, 400), st.floats(0.01, 0.99), st.integers(0, 999))
def test_the_threshold_is_split_conformal(n, budget, seed):
    """Of n + 1 prompts alike, in whatever order, the share that lies above the threshold of the other n is within the budget."""
    scores = torch.randn(n + 1, generator=torch.Generator().manual_seed(seed))
    exceed = 0
    for i in range(n + 1):
        rest = torch.cat([scores[:i], scores[i + 1 :]]).sort().values[:, None]
        calibration = Calibration(("global",), rest, rest[:0], torch.tensor([[0.0, 1.0]]))
        exceed += scores[i].item() > calibration.threshold(budget, "global")
    assert exceed / (n + 1) <= max(budget, 1 / (n + 1)) + 1e-9


def test_a_budget_read_off_few_prompts_is_less_certain():
    def width(n):
        scores = torch.linspace(-2, 2, n)[:, None]
        low, high = Calibration(("global",), scores, scores[:0], torch.tensor([[0.0, 1.0]])).uncertainty(0.01)
        assert low < 0.01 < high
        return high - low

    assert width(200) > 2 * width(3000)


def test_the_floor_is_the_median(aligned):
    calibration = Calibration.of([aligned.slot])
    below = (calibration.everyday[:, 0] <= calibration.floor("global")).float().mean().item()
    assert below == pytest.approx(FLOOR, abs=0.01)


@given(st.floats(-5, 5))
def test_strength_grows_first_and_landing_after_it(grade):
    verdict = Verdict(torch.tensor(grade > 1), torch.tensor(grade))
    strength, landing = verdict.strength.item(), verdict.landing.item()
    assert 0 <= strength <= 1 and 0 <= landing <= 1
    assert landing == 0 or strength == 1
    assert (landing == 1) == (grade >= LANDED) or grade == pytest.approx(LANDED, abs=1e-4)


def test_near_the_line_is_reported_beside_the_budget(planted):
    from dataclasses import replace

    prompts = planted.direction.anchor_prompts
    scores = -(planted.direction.anchor_states.float() @ planted.direction.readers["global"])
    risky = tuple(prompts[i] for i in scores.argsort()[:60].tolist())
    aligned = directions.align(replace(planted.direction, near=risky), planted.states)
    calibration = Calibration.of([aligned.slot])
    assert len(calibration.everyday) == len(prompts) - 60 and len(calibration.near) == 60
    assert 0 <= calibration.near_the_line(0.05, "global") <= 1
