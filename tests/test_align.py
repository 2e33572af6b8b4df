import pytest
import torch

import directions
from directions.align import METHODS, r2, svd, top1


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_recovers_a_planted_direction(planted, method):
    aligned = directions.align(planted.direction, planted.states, method=method)
    for name, truth in planted.truth.items():
        vector = aligned.vectors[aligned.names.index(name)]
        assert torch.nn.functional.cosine_similarity(vector, truth, dim=0) > (0.7 if method == "svd" else 0.98)  # a rotation alone can't undo unequal axes


def test_one_step_of_the_vector_is_one_benign_spread(planted, aligned):
    pooled = torch.stack([rows.mean(0) for rows in planted.states])
    for vector in aligned.vectors:
        unit = vector / vector.norm()
        assert vector.norm().item() == pytest.approx((pooled @ unit).std().item(), rel=1e-3)


def test_fit_reports_every_method_tried(aligned):
    assert set(aligned.fit["tried"]) == {"svd", "ridge", "cca"}
    assert aligned.fit["r2"] == max(fit["r2"] for fit in aligned.fit["tried"].values()) > 0.9
    assert 0.9 < aligned.fit["top1"] <= 1


def test_pooled_states_do_too(planted):
    pooled = torch.stack([rows.mean(0) for rows in planted.states])
    aligned = directions.align(planted.direction, pooled)
    assert torch.nn.functional.cosine_similarity(aligned.vectors[0], planted.truth["global"], dim=0) > 0.98


def test_a_file_without_readers_is_read_through_its_whitened_direction(planted):
    from dataclasses import replace

    aligned = directions.align(replace(planted.direction, readers={}), planted.states)
    benign = torch.stack([aligned.prompt_score(rows) for rows in planted.states])
    assert aligned.prompt_score(planted.unsafe) > benign.max()


def test_a_massive_dimension_does_not_drown_the_rest(planted):
    from dataclasses import replace

    states = planted.direction.anchor_states.float().clone()
    states[:, 3] *= 1000
    vectors = {name: v.clone() for name, v in planted.direction.vectors.items()}
    for vector in vectors.values():
        vector[3] *= 1000
    aligned = directions.align(replace(planted.direction, vectors=vectors, readers={}, anchor_states=states.half()), planted.states, "ridge")
    assert torch.nn.functional.cosine_similarity(aligned.vectors[0], planted.truth["global"], dim=0) > 0.98


def test_more_dimensions_than_anchors(planted):
    from dataclasses import replace

    few = replace(planted.direction, anchor_states=planted.direction.anchor_states[:20], anchor_prompts=planted.direction.anchor_prompts[:20])
    aligned = directions.align(few, planted.states[:20])
    assert torch.isfinite(aligned.vectors).all() and torch.isfinite(aligned.readers).all()


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
