import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from directions.bank import land, spacing_of
from directions.scores import KNOTS, MENTION, MOST_MENTION, NEAR, SHARPNESS, TOP
from directions.steer import FAR, FAR_BEHIND, MODES, SURE, TOKEN_MARGIN
from directions.verdict import LANDED, STEEPNESS


def test_positive_scores_are_unsafe(planted, aligned):
    assert aligned.score(planted.unsafe).mean() > 3 > aligned.score(torch.cat(planted.states)).mean().abs()


def test_token_scores_are_in_benign_standard_deviations(planted, aligned):
    scores = aligned.score(torch.cat(planted.states))
    assert scores.std().item() == pytest.approx(1, abs=0.05)


def test_a_token_score_adds_the_global_reading_and_the_highest_categorys(planted, aligned):
    readings = (planted.unsafe - aligned.slot.center) @ aligned.slot.readers.T
    mean, spread = aligned.slot.token_moments
    assert torch.allclose(
        aligned.score(planted.unsafe), (readings[:, 0] + readings[:, 1:].amax(1) - mean) / spread, atol=1e-4
    )
    for column, name in enumerate(aligned.categories, 1):
        assert torch.allclose(aligned.score(planted.unsafe, name), readings[:, column], atol=1e-4)


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2])
def test_the_budget_is_the_share_of_benign_prompts_flagged(planted, aligned, budget):
    flagged = torch.stack([aligned.flagged(rows, budget) for rows in planted.states]).float().mean().item()
    assert flagged == pytest.approx(budget, abs=max(0.01, budget / 4))


def test_add_moves_by_alpha_benign_spreads(planted, aligned):
    pooled = torch.stack([rows.mean(0) for rows in planted.states])
    unit = aligned.slot.vectors[0] / aligned.slot.vectors[0].norm()
    moved = aligned.steer(planted.states[0], alpha=3.0)
    assert ((moved - planted.states[0]) @ unit / (pooled @ unit).std()).mean().item() == pytest.approx(3, rel=1e-3)


def test_negative_alpha_moves_the_other_way(planted, aligned):
    states = planted.states[0]
    assert torch.allclose(
        aligned.steer(states, alpha=-2.0) - states, states - aligned.steer(states, alpha=2.0), atol=1e-4
    )


def test_gate_leaves_benign_prompts_bit_identical_and_moves_unsafe_ones(planted, aligned):
    benign = [rows for rows in planted.states if not aligned.flagged(rows, 0.01)]
    assert len(benign) >= 0.98 * len(planted.states)
    assert all(torch.equal(aligned.steer(rows, mode="gate"), rows) for rows in benign)
    moved = aligned.steer(planted.unsafe, mode="gate")
    assert aligned.prompt_score(moved) < aligned.threshold(0.01) < aligned.prompt_score(planted.unsafe)


def test_gate_touches_only_the_tokens_that_carry_the_concept(planted, aligned):
    prompt = torch.cat([planted.states[0], planted.unsafe, planted.states[1]])
    assert aligned.flagged(prompt, 0.05)
    changed = (aligned.steer(prompt, mode="gate", budget=0.05) != prompt).any(-1)
    before, after = len(planted.states[0]), len(planted.states[0]) + len(planted.unsafe)
    assert changed[before:after].all()
    scores = aligned.score(prompt)
    assert not changed[scores < min(scores.mean(), TOKEN_MARGIN)].any()


def test_gate_treats_each_prompt_of_a_batch_by_itself(planted, aligned):
    benign = next(rows for rows in planted.states if len(rows) >= 5 and not aligned.flagged(rows, 0.01))[:5]
    batch = torch.stack([benign, planted.unsafe])
    moved = aligned.steer(batch, mode="gate")
    assert torch.equal(moved[0], benign) == bool(not aligned.flagged(benign, 0.01))
    assert torch.equal(moved[1], aligned.steer(planted.unsafe, mode="gate"))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_batch_with_masks_scores_as_its_definition_says_of_each_prompt(aligned, data):
    """`scores.py` in plain words and loops: what the tokens read alone and with their surroundings, and the prompt as a whole,
    less what reads as a mention; each standardised, `global` plus the highest category, and in the end by length and language."""
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    slot = aligned.slot
    states = slot.center + 3 * torch.randn(3, 9, slot.width, generator=draw)
    mask = torch.tensor([data.draw(st.lists(st.booleans(), min_size=9, max_size=9)) for _ in range(3)])
    found = aligned.slot.prompt_scores(states, mask)
    for row, own in zip(range(3), mask):
        tokens = [states[row, t] - slot.center for t in range(9) if own[t]]
        expected = _defined(slot, tokens) if tokens else [0.0] * len(slot.names)
        assert found[row].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def _defined(slot, tokens):
    def standard(value, step, k):
        mean, spread = step[k].tolist()
        return (value - mean) / spread

    def lower(a, b):
        return -math.log(math.exp(-SHARPNESS * a) + math.exp(-SHARPNESS * b)) / SHARPNESS

    of_token, local, highest, highest_both, pooled, mention = slot.reading_moments
    n, by_name = len(tokens), []
    for k in range(len(slot.names)):
        words = [(token @ slot.readers[k]).item() for token in tokens]
        whole = [(token @ slot.prompt_readers[k]).item() for token in tokens]
        around = [whole[max(0, t - NEAR) : t + NEAR + 1] for t in range(n)]
        alone = sorted(standard(word, of_token, k) for word in words)[-TOP:]
        both = sorted(
            lower(standard(word, of_token, k), standard(sum(near) / len(near), local, k))
            for word, near in zip(words, around)
        )[-TOP:]
        here = standard(sum(alone) / len(alone), highest, k) + standard(sum(both) / len(both), highest_both, k)
        together = here / 2 + standard(sum(whole) / n, pooled, k)
        named = standard(sum((token @ slot.mention_reader).item() for token in tokens) / n, mention, k)
        by_name.append(standard(together, slot.score_moments, k) - MENTION * min(max(named, 0), MOST_MENTION))
    scores = [by_name[0] + max(by_name[1:]), *by_name[1:]]
    place = min(max(math.log2(n / KNOTS[0]), 0), len(KNOTS) - 1)
    shares = [max(0, 1 - abs(place - knot)) for knot in range(len(KNOTS))]

    def at(levels):
        return sum(share * level for share, level in zip(shares, levels))

    mean, spread = slot.length_model.tolist()
    scores = [(score - at(a)) / math.exp(at(b)) for score, a, b in zip(scores, mean, spread)]
    middle = sum(tokens) / n
    language = int((middle @ slot.language_readers.T + slot.language_bias).argmax())
    return [standard(score, slot.language_moments[language], k) for k, score in enumerate(scores)]


def follows(scores, token):
    """Whether a token that moves goes the way of those that land: it scores far below the highest, and not above SURE."""
    highest = int(scores.argmax())
    return token != highest and scores[token] < min(
        SURE, scores[highest].item() * (FAR_BEHIND if token > highest else FAR)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.05, 0.5, 1.0]))
def test_the_gate_does_what_its_definition_says_of_each_token(aligned, seed, budget):
    """In a flagged prompt the tokens above min(mean, margin) move: those that score near the highest land, shifted by alpha times
    the vector, the others go their way on average. Nothing else changes."""
    states = aligned.slot.center + 3 * torch.randn(
        3, 6, aligned.slot.width, generator=torch.Generator().manual_seed(seed)
    )
    moved = aligned.steer(states, alpha=2.0, mode="gate", budget=budget)
    for before, after in zip(states, moved):
        scores = aligned.score(before)
        landed = torch.cat(
            [
                land(
                    token.unsqueeze(0) + 2.0 * aligned.slot.vector(("global",)),
                    aligned.slot.bank,
                    aligned.slot.bank_spacing,
                )
                for token in before
            ]
        )
        expected = before
        if aligned.prompt_score(before) > aligned.threshold(budget):
            chosen = [t for t in range(6) if scores[t] > min(scores.mean().item(), TOKEN_MARGIN)]
            leading = [t for t in chosen if not follows(scores, t)]
            way = torch.stack([landed[t] - before[t] for t in leading]).mean(0)
            expected = torch.stack(
                [before[t] if t not in chosen else landed[t] if t in leading else before[t] + way for t in range(6)]
            )
        same = (expected == before).all(-1)
        assert torch.equal(after[same], before[same]) and torch.allclose(after, expected, atol=1e-3)


def test_a_word_beside_the_concept_stays_nearer_to_itself_than_one_that_lands(planted, aligned):
    """What scores low in a flagged prompt is some other word: it goes along, and differs from its neighbours as before."""
    found = 0
    for rows in planted.states[:200]:
        prompt = torch.cat([planted.unsafe, rows])
        scores = aligned.score(prompt)
        moved = aligned.steer(prompt, alpha=5.0, mode="gate", budget=0.2)
        along = [t for t in range(len(prompt)) if follows(scores, t) and not torch.equal(moved[t], prompt[t])]
        if len(along) > 1:
            found += 1
            assert torch.allclose(moved[along] - moved[along[0]], prompt[along] - prompt[along[0]], atol=1e-3)
    assert found > 20


def test_a_word_that_is_unsafe_by_itself_lands_beside_a_worse_one(aligned):
    """Above SURE it isn't some other word, however much worse the one before it is."""
    reader = aligned.slot.readers[0] / aligned.slot.readers[0].norm()
    steps = torch.arange(0, 20, 0.05)
    line = aligned.slot.center + steps[:, None] * reader
    scores = aligned.score(line)
    worse = line[(scores > 6).nonzero()[0, 0]]
    for score, lands in ((SURE - 0.3, False), (SURE + 0.3, True)):
        word = line[(scores > score).nonzero()[0, 0]]
        assert aligned.score(word[None])[0] < FAR_BEHIND * aligned.score(worse[None])[0]
        moved = aligned.steer(torch.stack([worse, word]), alpha=5.0, mode="gate", budget=0.2)
        landed = land(
            (word + 5.0 * aligned.slot.vector(("global",)))[None], aligned.slot.bank, aligned.slot.bank_spacing
        )[0]
        assert torch.allclose(moved[1], landed, atol=1e-3) == lands


def between(aligned, low, high, count=60):
    """Prompts whose grade lies between two values: unsafe states in all strengths."""
    draw = torch.Generator().manual_seed(4)
    reader = aligned.slot.prompt_readers[0] / aligned.slot.prompt_readers[0].norm()
    strength = torch.linspace(-4, 160, 800)[:, None, None]
    noise = torch.randn(800, 4, aligned.slot.width, generator=draw)
    states = aligned.slot.center + noise + strength * reader * aligned.slot.center.std()
    grade = aligned.verdict(states, 0.05).grade
    return states[(grade > low) & (grade < high)][:count]


def test_graded_leaves_what_is_below_the_floor_bit_identical(aligned):
    states = between(aligned, -20, 0)
    assert len(states) > 20
    assert torch.equal(aligned.steer(states, 8.0, "graded", budget=0.05), states)
    half = sum(bool((aligned.steer(states, 8.0, "graded", budget=b) != states).any()) for b in (0.2, 0.01))
    assert half == 0


def test_half_of_everyday_prompts_lie_below_the_floor(planted, aligned):
    draw = torch.Generator().manual_seed(5)
    noise = 0.3 * torch.randn(1000, 5, aligned.slot.width, generator=draw)
    fresh = (torch.randn(1000, 16, generator=draw) @ planted.to_target).unsqueeze(1) + noise
    below = aligned.verdict(fresh, 0.05).grade <= 0
    assert below.float().mean().item() == pytest.approx(0.5, abs=0.06)
    same = (aligned.steer(fresh, 8.0, "graded", budget=0.05) == fresh).flatten(1).all(1)
    assert same[below].all() and 0.5 < same.float().mean() < 0.7  # a little above the floor the shift is lost in rounding


def test_between_floor_and_threshold_graded_adds_a_power_of_the_grade_times_alpha(aligned):
    states = between(aligned, 0.05, 0.95)
    grade = aligned.verdict(states, 0.05).grade
    shift = aligned.steer(states, 8.0, "graded", budget=0.05) - states
    assert len(states) > 10
    strength = grade[:, None, None] ** STEEPNESS
    assert torch.allclose(shift, strength * 8.0 * aligned.slot.vector(("global",)), atol=1e-4)


def test_far_above_the_threshold_graded_is_the_gate(aligned):
    states = between(aligned, LANDED + 0.01, 50)
    gate, graded = (aligned.steer(states, 8.0, mode, budget=0.05) for mode in ("gate", "graded"))
    assert len(states) > 10 and torch.allclose(gate, graded, atol=1e-4)


def test_graded_is_continuous_in_the_score(aligned):
    """A prompt that turns unsafe bit by bit comes out changing bit by bit, also at the floor, the threshold and LANDED."""
    clean, unsafe = between(aligned, -1, 0, 1)[0], between(aligned, 2, 50, 1)[0]

    def jump(steps):
        shares = torch.linspace(0, 1, steps)[:, None, None]
        moved = aligned.steer(clean + shares * (unsafe - clean), 8.0, "graded", budget=0.05)
        return (moved[1:] - moved[:-1]).norm(dim=(1, 2))

    coarse, fine = jump(201), jump(3201)
    grade = aligned.verdict(clean + torch.linspace(0, 1, 3201)[:, None, None] * (unsafe - clean), 0.05).grade
    ramp = (grade[:-1] < 1) & (grade[1:] < 1)
    assert ramp.sum() > 100 and fine[ramp].max() < coarse.max() / 4


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 15), st.floats(0, 15), st.sampled_from([0.01, 0.05]), st.sampled_from([0.2, 0.5]))
def test_a_stronger_or_wider_graded_never_moves_less(aligned, one, other, small, large):
    states = between(aligned, -1, 0.95)
    weak, strong = sorted((one, other))
    moved = [(aligned.steer(states, a, "graded", budget=0.05) - states).norm(dim=(1, 2)) for a in (weak, strong)]
    assert (moved[0] <= moved[1] + 1e-4).all()
    grades = [aligned.verdict(states, budget).strength for budget in (small, large)]
    assert (grades[0] <= grades[1] + 1e-6).all()


def test_project_is_one_sided(planted, aligned):
    unit = aligned.slot.vectors[0] / aligned.slot.vectors[0].norm()
    moved = aligned.steer(planted.unsafe, mode="project")
    assert ((moved - aligned.slot.center) @ unit).abs().max() < 1e-3
    safe_side = aligned.slot.center + 2 * aligned.slot.vectors[0]
    assert torch.equal(aligned.steer(safe_side.unsqueeze(0), mode="project"), safe_side.unsqueeze(0))


def test_a_category_steers_along_its_own_vector(planted, aligned):
    moved = aligned.steer(planted.states[0], categories=["hate"]) - planted.states[0]
    assert (
        torch.nn.functional.cosine_similarity(moved[0], aligned.slot.vectors[aligned.names.index("hate")], dim=0)
        > 0.999
    )
    towards = {
        name: torch.nn.functional.cosine_similarity(moved[0], truth, dim=0) for name, truth in planted.truth.items()
    }
    assert towards["hate"] > 0.7 > towards["violence"]


@settings(deadline=None, max_examples=60)
@given(
    mode=st.sampled_from(sorted(MODES)),
    alpha=st.floats(-7, 7),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    data=st.data(),
)
def test_tokens_outside_the_mask_never_change(planted, aligned, mode, alpha, dtype, data):
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=5, max_size=5)))
    states = planted.unsafe.to(dtype)
    moved = aligned.steer(states, alpha=alpha, mode=mode, mask=mask)
    assert moved.shape == states.shape and moved.dtype == dtype and torch.isfinite(moved).all()
    assert torch.equal(moved[~mask], states[~mask])


def test_alpha_zero_changes_nothing(planted, aligned):
    for mode in ("add", "gate", "graded"):
        assert torch.equal(aligned.steer(planted.unsafe, alpha=0.0, mode=mode), planted.unsafe)


def test_half_precision_does_not_overflow(planted, aligned):
    states = torch.full((3, 32), 65000.0, dtype=torch.float16)
    assert torch.isfinite(aligned.steer(states, alpha=1000.0)).all()


def test_landing_averages_the_nearest_bank_states():
    bank = torch.tensor([[0.0, 0.0], [1.0, 0.0], [100.0, 100.0]])
    landed = land(torch.tensor([[99.0, 99.0]]), bank, torch.ones(3))
    assert torch.allclose(landed, bank[2:], atol=2.0)


def test_states_from_everywhere_do_not_all_land_in_the_middle_of_the_crowd():
    """In 64 dimensions a crowd's middle is nearer to any state of the crowd than the others are; its spacing says so."""
    draw = torch.Generator().manual_seed(0)
    bank = torch.cat([torch.randn(300, 64, generator=draw), 0.05 * torch.randn(4, 64, generator=draw)])
    states = torch.randn(100, 64, generator=draw)
    in_the_middle = [land(states, bank, by).norm(dim=1) < 1 for by in (torch.ones(len(bank)), spacing_of(bank))]
    assert in_the_middle[0].float().mean() > 0.9 and not in_the_middle[1].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "push"}, "unknown mode"),
        ({"alpha": float("nan")}, "strength"),
        ({"budget": 1.5}, "budget"),
        ({"categories": ["weather"]}, "no category 'weather'"),
        ({"categories": "hate"}, "list of names"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "a mask for 3 tokens on states with 5 tokens"),
        ({"mask": torch.ones(0, dtype=torch.bool)}, "a mask for 0 tokens"),
    ],
)
def test_wrong_arguments_are_named(planted, aligned, arguments, message):
    with pytest.raises(ValueError, match=message):
        aligned.steer(planted.unsafe, **arguments)


def test_a_wrong_width_asks_for_an_alignment(aligned):
    with pytest.raises(ValueError, match=r"\[2, 99\] don't fit: this alignment is for \[..., tokens, 32\]"):
        aligned.steer(torch.zeros(2, 99))


def test_no_tokens_pass_through(aligned):
    assert aligned.steer(torch.zeros(0, 32), mode="gate").shape == (0, 32)


@pytest.mark.parametrize("mode", MODES)
def test_inference_mode_changes_nothing(planted, aligned, mode):
    states = torch.stack([planted.unsafe, -planted.unsafe])
    plain = aligned.steer(states, mode=mode, categories=["hate", "violence"])
    with torch.inference_mode():
        assert torch.equal(aligned.steer(states, mode=mode, categories=["hate", "violence"]), plain)


def test_add_is_one_graph(planted, aligned):
    """The other modes look thresholds up, and gate asks what is flagged: those two are for Python."""
    mask = torch.arange(5).expand(2, 5) < 3
    states = torch.stack([planted.unsafe, -planted.unsafe])
    compiled = torch.compile(
        lambda some: aligned.steer(some, mask=mask, categories=["hate"]), fullgraph=True, backend="eager"
    )
    with torch.inference_mode():
        assert torch.equal(compiled(states), aligned.steer(states, mask=mask, categories=["hate"]))
