"""FID against torchmetrics, CMMD against its definition, intervals against what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from directions.evaluate.metrics import bootstrap, cmmd_to, fid_to, share


def fid(first, second):
    return fid_to(second)(first)


def cmmd(first, second):
    return cmmd_to(second)(first)


def features(count, width, seed, shift=0.0):
    draw = np.random.default_rng(seed)
    mix = draw.normal(size=(width, width)) / np.sqrt(width)
    return draw.normal(size=(count, width)) @ mix + shift


def reference_fid(first, second):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class AsTheyAre(torch.nn.Module):
        num_features = first.shape[1]

        def forward(self, rows):
            return rows

    metric = FrechetInceptionDistance(feature=AsTheyAre()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    return metric.compute().item()


@pytest.mark.parametrize(("counts", "width"), [((300, 200), 16), ((500, 400), 128), ((40, 60), 128)])
def test_fid_agrees_with_torchmetrics(counts, width):
    first, second = features(counts[0], width, 1), features(counts[1], width, 2, shift=0.3)
    assert fid(first, second) == pytest.approx(reference_fid(first, second), rel=1e-3, abs=1e-3)


def test_fid_of_known_normals():
    """Between N(0, 1) and N(3, 4) in each of two independent directions: 3^2 + (1 - 2)^2, twice."""
    grid = np.random.default_rng(0).normal(size=(20000, 2))
    grid = (grid - grid.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(grid.T))).T
    assert fid(grid, 2 * grid + 3) == pytest.approx(20)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.integers(0, 1000))
def test_distances_are_symmetric_and_none_to_oneself(first, second, width, seed):
    a, b = features(first, width, seed), features(second, width, seed + 1)
    for distance in (fid, cmmd):
        assert distance(a, b) == pytest.approx(distance(b, a), abs=1e-8)
        assert distance(a, a) == pytest.approx(0, abs=1e-8)
        assert distance(a, b) > -1e-8


def test_fid_does_not_see_a_rotation_of_both():
    a, b = features(50, 8, 1), features(60, 8, 2)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    assert fid(a @ rotation, b @ rotation) == pytest.approx(fid(a, b))


def test_cmmd_of_single_pictures_is_by_the_definition():
    """k(x, x) = 1 on both sides, and exp(-2 / 200) between unit vectors at a right angle; their length doesn't count."""
    assert cmmd(np.array([[5.0, 0.0]]), np.array([[0.0, 1.0]])) == pytest.approx(1000 * (2 - 2 * np.exp(-0.01)))


def test_wilsons_interval():
    """Against the worked example of a textbook: 10 of 20, and none and all of 10."""
    assert share([1] * 10 + [0] * 10) == pytest.approx((0.5, 0.2993, 0.7007), abs=1e-4)
    assert share([0] * 10) == pytest.approx((0, 0, 0.2775), abs=1e-4)
    assert share([1] * 10) == pytest.approx((1, 0.7225, 1), abs=1e-4)
    assert share([]) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_a_share_lies_in_its_interval_and_both_in_0_to_1(hits):
    value, low, high = share(hits)
    assert 0 <= low <= value <= high <= 1


def test_the_bootstrap_knows_the_error_of_a_mean():
    rows = np.random.default_rng(1).normal(5, 2, 400)
    value, low, high = bootstrap(lambda picks: rows[picks].mean(), len(rows))
    assert value == rows.mean() and low < value < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.2)
