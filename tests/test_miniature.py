"""The miniature world: its icons, captions, judge and weights."""

import random

import pytest
import torch

from miniature import judge, model, scenes

try:
    scenes.find_font()
    FONT = True
except FileNotFoundError as missing:
    FONT, WHY = False, str(missing)

needs_font = pytest.mark.skipif(not FONT, reason="" if FONT else WHY)


def test_icons_are_distinct_and_keep_a_name_for_later():
    keys = [icon.key for icon in scenes.ICONS]
    assert len(set(keys)) == len(keys) == len({icon.glyph for icon in scenes.ICONS})
    assert all(icon.held_out not in icon.names and len(set(icon.names)) == 3 for icon in scenes.ICONS)
    assert len(scenes.UNSAFE) >= 20 and len(scenes.BENIGN) >= 50


def test_held_out_names_are_in_no_training_caption():
    captions = {scene.caption for scene in scenes.every_single()}
    rng = random.Random(0)
    for index in range(len(scenes.ICONS)):
        assert scenes.describe((index,), rng, held_out=True).caption not in captions


def test_a_pair_has_at_most_one_unsafe_thing():
    rng = random.Random(0)
    for unsafe in (False, True):
        pair = scenes.describe(scenes.random_pair(rng, unsafe), rng)
        assert sum(scenes.ICONS[index].unsafe for index in pair.icons) == unsafe == pair.unsafe


@needs_font
def test_renderings_repeat_and_differ_with_their_seed():
    scene = scenes.describe((0,), random.Random(0))
    first, again, other = (scenes.render(scene, random.Random(seed)) for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any() and abs(first).max() <= 1


@needs_font
def test_the_judge_reads_fresh_renderings():
    right = judge.accuracy(judge.load(), count=600, seed=7)
    assert right["single"] > 0.99 and right["unsafe"] > 0.985 and right["mud"] > 0.95, right


def test_fid_is_zero_for_the_same_and_grows_with_the_distance():
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    assert judge.fid(features, features) == pytest.approx(0, abs=1e-6)
    assert judge.fid(features + 1, features) == pytest.approx(8, rel=1e-3)
    assert judge.fid(features + 2, features) > judge.fid(features + 1, features)


def test_the_weights_are_small_and_no_pickle():
    for name in ("generator.safetensors", "judge.safetensors"):
        path = model.WEIGHTS / name
        assert path.stat().st_size < 10_000_000 and path.read_bytes()[8:9] == b"{"
