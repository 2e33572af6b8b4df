from dataclasses import replace

import pytest
import torch

import directions
from directions.align import SHRINKAGE
from directions.bank import AROUND
from directions.maps import COMPONENTS, METHODS, cca, r2, ridge, svd, top1


def agreement(aligned, planted, name="global"):
    """Cosine of a vector, freed of the benign covariance that aligning divides it by, with the planted truth."""
    pooled = torch.stack([rows.mean(0) for rows in planted.states])
    cover = (pooled - pooled.mean(0)).T @ (pooled - pooled.mean(0)) / len(pooled)
    plain = (cover + SHRINKAGE * cover.diagonal().mean() * torch.eye(len(cover))) @ aligned.slot.vectors[
        aligned.names.index(name)
    ]
    return torch.nn.functional.cosine_similarity(plain, planted.truth[name], dim=0)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_recovers_a_planted_direction(planted, method):
    aligned = directions.align(planted.direction, planted.states, method=method)
    for name in planted.truth:
        assert agreement(aligned, planted, name) > (
            0.7 if method == "svd" else 0.98
        )  # a rotation alone can't undo unequal axes


def test_a_vector_parts_safe_from_unsafe_with_less_drift_than_the_plain_difference(planted, aligned):
    pooled = torch.stack([rows.mean(0) for rows in planted.states])
    for name, truth in planted.truth.items():
        ours, plain = (
            ((truth @ v) / (pooled @ v).std()).item() for v in (aligned.slot.vectors[aligned.names.index(name)], truth)
        )
        assert ours > plain > 0


def test_one_step_of_the_vector_is_one_benign_spread(planted, aligned):
    pooled = torch.stack([rows.mean(0) for rows in planted.states])
    for vector in aligned.slot.vectors:
        unit = vector / vector.norm()
        assert vector.norm().item() == pytest.approx((pooled @ unit).std().item(), rel=1e-3)


def test_fit_reports_every_method_tried(aligned):
    assert set(aligned.fit["tried"]) == {"svd", "ridge", "cca"}
    assert aligned.fit["r2"] == max(fit["r2"] for fit in aligned.fit["tried"].values()) > 0.9
    assert 0.9 < aligned.fit["top1"] <= 1


def test_pooled_states_do_too(planted):
    pooled = torch.stack([rows.mean(0) for rows in planted.states])
    aligned = directions.align(planted.direction, pooled)
    assert agreement(aligned, planted) > 0.98


def test_a_file_without_readers_is_read_through_its_whitened_direction(planted):
    aligned = directions.align(replace(planted.direction, readers={}), planted.states)
    benign = torch.stack([aligned.prompt_score(rows) for rows in planted.states])
    assert aligned.prompt_score(planted.unsafe) > benign.max()


def test_token_scores_tell_which_token_it_is(planted):
    """The planted tokens are noise around their prompt; here one token of each prompt carries a concept of its own."""
    draw = torch.Generator().manual_seed(3)
    strength = torch.randn(len(planted.states), generator=draw)
    axis = torch.randn(planted.states[0].shape[1], generator=draw)
    states = [rows.clone() for rows in planted.states]
    scores = [torch.zeros(len(rows), len(planted.direction.categories) + 1) for rows in states]
    for rows, marks, much in zip(states, scores, strength):
        rows[-1] += much * axis
        marks[-1] = much
    direction = replace(
        planted.direction,
        token_scores=torch.cat(scores).half(),
        token_counts=torch.tensor([len(rows) for rows in states]),
    )
    prompt = torch.cat([planted.states[0][:3], planted.states[1][:1] + 5 * axis])
    assert directions.align(direction, states).score(prompt).argmax() == 3


@pytest.fixture(scope="module")
def mentioning(planted):
    """Anchors that hardly touch the concept, a direction with fifty mentions of it among them, and all states."""
    draw = torch.Generator().manual_seed(5)
    hidden = torch.randn(350, 16, generator=draw)
    named = torch.arange(350) % 7 == 0
    hidden[~named, 0] *= 0.02
    hidden[named, 0] -= 3
    states = [
        row @ planted.to_target + 0.3 * torch.randn(4, planted.to_target.shape[1], generator=draw) for row in hidden
    ]
    prompts = tuple(f"prompt {i}" for i in range(350))
    mentions = tuple(prompt for prompt, is_named in zip(prompts, named) if is_named)
    return replace(
        planted.direction, anchor_states=(hidden @ planted.to_source).half(), anchor_prompts=prompts, mentions=mentions
    ), states


def without_mentions(direction, states):
    plain = ~direction.mentioned
    prompts = tuple(prompt for prompt, one in zip(direction.anchor_prompts, plain) if one)
    return replace(direction, anchor_states=direction.anchor_states[plain], anchor_prompts=prompts, mentions=()), [
        rows for rows, one in zip(states, plain) if one
    ]


def test_mentions_teach_reading_and_nothing_else(planted, mentioning):
    aligned, bare = directions.align(*mentioning), directions.align(*without_mentions(*mentioning))
    benign = [rows for rows, mentioned in zip(mentioning[1], mentioning[0].mentioned) if not mentioned]
    unsafe = planted.unsafe / 2

    def margin(one):
        scores = torch.stack([one.prompt_score(rows) for rows in benign])
        return ((one.prompt_score(unsafe) - scores.mean()) / scores.std()).item()

    assert margin(aligned) > 2 * margin(bare)
    assert torch.equal(aligned.slot.vectors, bare.slot.vectors) and torch.equal(aligned.slot.center, bare.slot.center)
    assert torch.equal(aligned.slot.token_levels, bare.slot.token_levels)
    languages = {"languages": None}  # how well mentions are told apart says nothing without them
    assert aligned.fit | languages == bare.fit | languages


def test_budgets_and_landing_know_no_mentions(mentioning):
    aligned = directions.align(*mentioning)
    flagged = torch.tensor([bool(aligned.flagged(rows, 0.05)) for rows in mentioning[1]])
    mentioned = mentioning[0].mentioned
    assert flagged[~mentioned].float().mean() < 0.08 and flagged[mentioned].float().mean() > 0.5
    own = torch.cat([rows for rows, one in zip(mentioning[1], mentioned) if not one])
    away = torch.cdist(aligned.slot.bank.float(), own).amin(1)  # a bank is held in bytes
    assert len(aligned.slot.bank) > 200 and away.max() < 0.05 * (own - own.mean(0)).norm(dim=1).mean()


def test_a_bank_state_stands_once_and_knows_its_spacing(planted):
    """Encoders give the same state for the same beginning, in many prompts."""
    states = [torch.cat([planted.states[0][:1], rows]) for rows in planted.states]
    aligned = directions.align(planted.direction, states)
    bank = aligned.slot.bank.float()
    assert len({tuple(row.tolist()) for row in bank}) == len(bank) > 400
    one = sorted(((bank - bank[7]).norm(dim=1)).tolist())[1 : AROUND + 1]
    assert aligned.slot.bank_spacing[7].item() == pytest.approx(sum(one) / AROUND, rel=1e-3)


def test_where_mentions_stand_does_not_matter(mentioning):
    direction, states = mentioning
    order = torch.argsort(direction.mentioned.int(), descending=True, stable=True)
    prompts = tuple(direction.anchor_prompts[i] for i in order)
    moved = replace(direction, anchor_states=direction.anchor_states[order], anchor_prompts=prompts)
    one, other = directions.align(direction, states), directions.align(moved, [states[i] for i in order])
    assert torch.equal(one.slot.readers, other.slot.readers)
    assert torch.equal(one.slot.anchor_scores, other.slot.anchor_scores)


def test_a_massive_dimension_does_not_drown_the_rest(planted):
    states = planted.direction.anchor_states.float().clone()
    states[:, 3] *= 1000
    vectors = {name: v.clone() for name, v in planted.direction.vectors.items()}
    for vector in vectors.values():
        vector[3] *= 1000
    aligned = directions.align(
        replace(planted.direction, vectors=vectors, readers={}, anchor_states=states.half()), planted.states, "ridge"
    )
    assert agreement(aligned, planted) > 0.98


def test_more_dimensions_than_anchors(planted):
    few = replace(
        planted.direction,
        anchor_states=planted.direction.anchor_states[:20],
        anchor_prompts=planted.direction.anchor_prompts[:20],
    )
    aligned = directions.align(few, planted.states[:20])
    assert torch.isfinite(aligned.slot.vectors).all() and torch.isfinite(aligned.slot.readers).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:-1], "399 states for 400 anchor prompts"),
        (lambda s: [*s[:5], torch.zeros(2, 7), *s[6:]], "anchor 5 have shape"),
        (lambda s: [*s[:5], torch.zeros(0, 32), *s[6:]], "anchor 5 have shape"),
        (lambda s: [*s[:5], torch.full((2, 32), torch.nan), *s[6:]], "NaN"),
        (lambda s: [torch.ones(2, 32)] * len(s), "ignores its prompt"),
    ],
)
def test_states_that_do_not_fit_are_refused(planted, change, message):
    with pytest.raises(ValueError, match=message):
        directions.align(planted.direction, change(planted.states))


def test_unknown_method_names_the_known(planted):
    with pytest.raises(ValueError, match="svd, ridge, cca, mlp or auto"):
        directions.align(planted.direction, planted.states, method="magic")


def test_svd_finds_a_rotation_and_its_scale():
    source = torch.randn(100, 6, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    predicted = svd(source, 3 * source @ rotation)(source)
    assert r2(predicted, 3 * source @ rotation) == pytest.approx(1)
    assert top1(predicted, 3 * source @ rotation) == 1


def plain_svd(source, target):
    u, s, v = torch.linalg.svd(source.T @ target, full_matrices=False)
    kept = s > 1e-12 * s[0]  # the rest turns nothing
    return u[:, kept] @ v[kept] * s.sum() / source.square().sum()


def plain_ridge(source, target):
    return torch.linalg.solve(source.T @ source + 0.1 * len(source) * torch.eye(source.shape[1]), source.T @ target)


def plain_cca(source, target):
    def whiten(states):
        values, vectors = torch.linalg.eigh(states.T @ states / len(states))
        keep = min(COMPONENTS, len(states) // 4, len(values))
        return vectors[:, -keep:] / values[-keep:].sqrt(), vectors[:, -keep:] * values[-keep:].sqrt()

    (into, _), (onto, back) = whiten(source), whiten(target)
    u, s, v = torch.linalg.svd((source @ into).T @ (target @ onto) / len(source), full_matrices=False)
    return into @ (u * s) @ v @ back.T


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 5e-3)])
@pytest.mark.parametrize(("anchors", "widths"), [(300, (80, 60)), (300, (60, 80)), (50, (80, 60)), (70, (80, 60))])
@pytest.mark.parametrize(("ours", "plain"), [(svd, plain_svd), (ridge, plain_ridge), (cca, plain_cca)])
def test_the_maps_are_those_of_the_plain_decompositions(ours, plain, anchors, widths, dtype, error):
    """Also with fewer anchors than dimensions, and where variances differ a thousandfold."""
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(anchors, 20, generator=draw, dtype=torch.float64)

    def states(width):
        own = torch.randn(anchors, width, generator=draw, dtype=torch.float64) * torch.logspace(0, -1.5, width)
        return own + shared @ torch.randn(20, width, generator=draw, dtype=torch.float64)

    source, target = map(states, widths)
    right = plain(source, target)
    before = target.clone()
    found = ours(source.to(dtype), target.to(dtype))(torch.eye(widths[0], dtype=dtype))
    assert (found - right).norm() < error * right.norm()
    assert torch.equal(target, before)
