"""What a judge says about a picture, with pictures and classifiers whose answers are known."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from directions.evaluate.judges import EXPOSED, JudgeMissing, NudeNet, load_judge
from directions.evaluate.verdicts import Labels
from tests.pictures import LABELS, colour_judge, plain

RED, GREEN, GREY = plain(255, 0, 0), plain(0, 255, 0), plain(128, 128, 128)


def test_an_onnx_classifier_says_how_unsafe_how_benign_and_what(tmp_path):
    judge = load_judge(colour_judge(tmp_path / "colour.onnx"))
    verdict = judge([RED, GREEN, GREY])
    assert judge.name == "colour" and judge.labels == ("red", "green", "blue") and judge.threshold == 0.5
    assert verdict.unsafe[0] > 0.99 and verdict.benign[0] < 0.01
    assert verdict.unsafe[1] < 0.01 and verdict.benign[1] > 0.99
    assert verdict.labels[2] == pytest.approx([1 / 3] * 3)
    np.testing.assert_allclose(verdict.features[:2], [[1, 0, 0], [0, 1, 0]])


def test_pictures_of_any_size_are_brought_to_the_classifiers_own(tmp_path):
    judge = load_judge(colour_judge(tmp_path / "colour.onnx"))
    assert judge([plain(255, 0, 0, (50, 20)), plain(255, 0, 0, (32, 32))]).unsafe == pytest.approx([1, 1])


def test_mean_and_std_are_applied(tmp_path):
    judge = load_judge(
        colour_judge(tmp_path / "colour.onnx", labels=LABELS | {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]})
    )
    np.testing.assert_allclose(judge([plain(255, 255, 0)]).features, [[1, 2, -1]], rtol=1e-6)


def test_several_labels_may_be_true_at_once(tmp_path):
    labels = LABELS | {"unsafe": ["red", "blue"]}
    either, both = (
        load_judge(colour_judge(tmp_path / f"{multi}.onnx", labels=labels | {"multi": multi}))
        for multi in (False, True)
    )
    magenta = plain(255, 0, 255)
    assert either([magenta]).labels.sum() == pytest.approx(1) and both([magenta]).labels[0].tolist() == pytest.approx(
        [1, 0.5, 1], abs=1e-6
    )
    assert either([GREY]).unsafe == pytest.approx(2 / 3)  # something unsafe, whichever it is


def test_labels_can_be_in_the_models_own_metadata(tmp_path):
    import onnx

    path = colour_judge(tmp_path / "colour.onnx", labels=None)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {"labels": json.dumps(LABELS)})
    onnx.save(model, str(path))
    assert load_judge(path)([RED]).unsafe[0] > 0.99


def test_features_are_optional(tmp_path):
    assert load_judge(colour_judge(tmp_path / "colour.onnx", features=False))([RED]).features is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "no labels: put colour.json beside it, such as {"),
        ({"labels": ["red"]}, "`labels` or `unsafe` is missing"),
        (LABELS | {"unsafe": ["pink"]}, "unsafe labels that are no labels: pink"),
        (LABELS | {"std": [0, 1, 1]}, "`std` is not three numbers"),
        (LABELS | {"size": "big"}, "`size` is not a whole number"),
        (LABELS | {"colour": 1}, "nothing is known of colour"),
    ],
)
def test_bad_labels_are_refused_with_an_example(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        load_judge(colour_judge(tmp_path / "colour.onnx", labels=labels))


def test_labels_that_do_not_fit_the_classifier(tmp_path):
    judge = load_judge(
        colour_judge(tmp_path / "colour.onnx", labels={"labels": ["a", "b"], "unsafe": ["a"], "size": 32})
    )
    with pytest.raises(ValueError, match="its output is .1, 3., where 1 pictures and 2 labels were expected"):
        judge([RED])


def test_a_judge_that_is_none(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    for name, message in (
        ("nudnet", "no judge 'nudnet'"),
        (tmp_path / "broken.onnx", "can't load it"),
        (tmp_path, "no CLIP model"),
    ):
        with pytest.raises(ValueError, match=message):
            load_judge(name)
    with pytest.raises(FileNotFoundError, match="no ONNX classifier"):
        load_judge(tmp_path / "none.onnx")


@pytest.mark.parametrize(("package", "judge"), [("nudenet", "nudenet"), ("onnxruntime", "colour.onnx")])
def test_without_its_package_a_judge_names_the_command(monkeypatch, package, judge):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(JudgeMissing, match="pip install nudenet onnxruntime"):
        load_judge(judge)


def test_nudenet_finds_nothing_in_a_plain_picture():
    judge = load_judge("nudenet")
    assert judge([RED, plain(200, 170, 150, (64, 48))]).unsafe.tolist() == [0, 0]


def test_nudenet_counts_exposed_parts_and_sees_the_right_colours(monkeypatch):
    judge = NudeNet()
    seen = []

    def detect_batch(pictures, batch_size):
        seen.extend(pictures)
        parts = [
            ("FACE_FEMALE", 0.9),
            ("FEMALE_BREAST_COVERED", 0.8),
            ("FEMALE_BREAST_EXPOSED", 0.7),
            ("BUTTOCKS_EXPOSED", 0.4),
        ]
        return [[{"class": name, "score": score} for name, score in parts], [{"class": "FEET_EXPOSED", "score": 0.9}]]

    monkeypatch.setattr(judge._detector, "detect_batch", detect_batch)
    assert judge([RED, GREEN]).unsafe.tolist() == [0.7, 0]
    assert seen[0][0, 0].tolist() == [0, 0, 255]  # OpenCV's order
    labels = importlib.import_module("nudenet.nudenet").__dict__["__labels"]
    assert set(EXPOSED) <= set(labels)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP model of random weights, tiny, in a folder as the Hub would give it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {
        c + end: i for i, (end, c) in enumerate((end, c) for end in ("", "</w>") for c in map(chr, range(33, 127)))
    }
    vocabulary |= {"<|startoftext|>": len(vocabulary), "<|endoftext|>": len(vocabulary) + 1}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    layers = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    text = layers | ends | {"vocab_size": len(vocabulary), "max_position_embeddings": 32, "pad_token_id": 1}
    import torch

    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(text_config=text, vision_config=layers | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    ).save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def test_a_clip_folder_gives_scores_and_features(clip_folder):
    judge = load_judge(clip_folder)
    verdict = judge([RED, GREEN], ["a red wall", "a green field"])
    swapped = judge([GREEN, RED], ["a green field", "a red wall"])
    assert verdict.unsafe is None and judge.labels == ()
    assert verdict.features.shape == (2, 16) and np.linalg.norm(verdict.features, axis=1) == pytest.approx([1, 1])
    assert (
        verdict.clip_score == pytest.approx(swapped.clip_score[::-1], abs=1e-5)
        and np.abs(verdict.clip_score).max() <= 1
    )
    assert judge([RED]).clip_score is None


def test_with_labels_a_clip_folder_classifies(clip_folder):
    (clip_folder / "labels.json").write_text(
        json.dumps({"labels": ["a photo of a gun", "a photo of a cat"], "unsafe": ["a photo of a gun"]})
    )
    try:
        judge = load_judge(clip_folder)
        verdict = judge([RED, GREEN])
    finally:
        (clip_folder / "labels.json").unlink()
    assert verdict.labels.sum(1) == pytest.approx([1, 1]) and verdict.unsafe + verdict.benign == pytest.approx([1, 1])
    assert load_judge(clip_folder).fingerprint != judge.fingerprint


def test_the_miniatures_judge_says_the_same_as_onnx(tmp_path):
    import torch

    from miniature.judge import Judge, export_onnx, look

    torch.manual_seed(0)
    judge = Judge().eval()
    exported = load_judge(export_onnx(judge, tmp_path / "miniature.onnx"))
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    ours = look(judge, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1)
    theirs = exported(list(pictures))
    np.testing.assert_allclose(theirs.labels, ours.icons.numpy(), atol=1e-5)
    np.testing.assert_allclose(theirs.features, ours.features.numpy(), atol=1e-5)
    np.testing.assert_allclose(theirs.unsafe, ours.unsafe.numpy(), atol=1e-5)
    np.testing.assert_allclose(theirs.benign, ours.benign.numpy(), atol=1e-5)


def test_the_example_in_the_error_message_is_valid():
    assert Labels.parse(Labels.EXAMPLE, "example").unsafe == ("gun",)
