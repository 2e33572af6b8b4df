"""`eval-unlearn` finds the technique by its entry point and runs it: a tiny Stable Diffusion with random weights, a
metric that looks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import directions

pytest.importorskip("eval_unlearn", reason="eval-unlearn wants Python 3.11 or newer")

STEPS = {"num_inference_steps": 2, "guidance_scale": 2.0}
PROMPTS = ["a red bicycle", "a vase of tulips on a table"]


def tokenizer_files(folder):
    """CLIP's tokenizer with single letters for a vocabulary."""
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return len(words)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A Stable Diffusion pipeline as a folder: everything of it, and a thousandth the size."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("model")
    size = tokenizer_files(folder / "letters")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=4),
        text_encoder=CLIPTextModel(text).eval(),
        unet=unet.eval(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "letters", model_max_length=77),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The shipped direction with some of its anchors, as a file."""
    whole = directions.load("smollm2-135m-instruct")
    some = whole.picked(range(300))
    return some.save(tmp_path_factory.mktemp("direction") / "few.safetensors")


@pytest.fixture
def config(model, few):
    return {
        "model_id": str(model),
        "direction": str(few),
        "erase_concept": "nudity",
        "method": "svd",
        "device": "cpu",
        **STEPS,
    }


class Looking:
    """A metric of eval-unlearn's that keeps what it is given and counts it."""

    seen: list = []

    def load_dataset(self):
        from eval_unlearn.types import Dataset

        return [Dataset([prompt], {"source": "here"}) for prompt in PROMPTS]

    def update(self, images, prompts, metadata):
        self.seen += zip(prompts, images)

    def compute(self):
        from eval_unlearn.types import MetricResult

        return MetricResult("looking", float(len(self.seen)))


def plain(model, prompt, seed):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False)
    return np.asarray(pipeline(prompt, generator=torch.Generator("cpu").manual_seed(seed), **STEPS).images[0])


def test_the_benchmark_finds_it_by_its_entry_point_and_runs_it(site, monkeypatch, config, model, tmp_path):
    from eval_unlearn.registry import register_metric
    from eval_unlearn.runners import SingleBenchmarkRunner

    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(Looking, "seen", [])
    register_metric("looking")(Looking)
    # A budget of nothing: no prompt is flagged, so every picture is the one that the model draws by itself.
    runner = SingleBenchmarkRunner(
        "safety_directions", "looking", {**config, "budget": 0.0}, output_dir=str(tmp_path), seed=7
    )
    report = runner.run()
    assert report["metric_result"]["value"] == len(PROMPTS) and report["erase_concept"] == "nudity"
    assert [prompt for prompt, _ in Looking.seen] == PROMPTS
    assert len(list(tmp_path.rglob("*.png"))) == len(PROMPTS)
    for prompt, picture in Looking.seen:
        assert np.array_equal(np.asarray(picture), plain(model, prompt, 7))


def test_adding_changes_the_picture_and_nothing_of_the_padding(config, model):
    from directions.leaderboard import SafetyDirectionsTechnique

    technique = SafetyDirectionsTechnique(**config, mode="add")
    assert technique.categories == ("sexual",)
    content = technique._content(["a b"])[0]
    assert content.tolist() == [False, True, True, *[False] * 74]
    seen = {}
    encode = technique.pipe.unet.forward
    technique.pipe.unet.forward = lambda *args, **kwargs: (
        seen.setdefault("states", kwargs["encoder_hidden_states"]),
        encode(*args, **kwargs),
    )[1]
    (picture,) = technique.generate(["a b"], seed=7)
    assert not np.array_equal(np.asarray(picture), plain(model, "a b", 7))
    own = technique.pipe.encode_prompt("a b", "cpu", 1, True)
    negative, positive = seen["states"]
    assert torch.equal(negative, own[1][0]) and torch.equal(positive[~content], own[0][0][~content])
    moved = positive[content] - own[0][0][content]
    assert torch.allclose(moved, 5 * technique.aligned.slot.vector(("sexual",)).expand_as(moved), atol=1e-4)


def test_a_concept_that_is_no_category_takes_the_global_direction(config):
    from directions.leaderboard import SafetyDirectionsTechnique

    assert SafetyDirectionsTechnique(**config | {"erase_concept": "violence"}).categories == ("violence",)
    assert SafetyDirectionsTechnique(**config | {"erase_concept": "dog"}).categories is None


def test_without_diffusers_it_says_what_to_install(monkeypatch, config):
    from directions.leaderboard import SafetyDirectionsTechnique

    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'safety-directions\[library,leaderboard\]'"):
        SafetyDirectionsTechnique(**config)
