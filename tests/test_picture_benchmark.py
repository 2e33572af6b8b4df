"""What the picture benchmark makes of pictures: drift of harmless ones, and the frontier's curves."""

import sys

import pytest
import torch
from PIL import Image

from benchmarks import frontier, image_prompts
from benchmarks.drift import distance, drift
from benchmarks.images import IMPLICIT, RUNS, SHIPPED, files
from directions.evaluate.prompts import Prompt, read_prompts
from directions.prompts import read_anchors
from miniature import scenes

try:
    scenes.find_font()
except FileNotFoundError as missing:
    pytest.skip(str(missing), allow_module_level=True)


def save(folder, number, picture):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = ((picture.transpose(1, 2, 0) + 1) * 127.5).round().clip(0, 255).astype("uint8")
    Image.fromarray(pixels).save(folder / f"benign-{number:05d}-1of1.png")


def icon(key):
    return [icon.key for icon in scenes.ICONS].index(key)


@pytest.fixture
def run(tmp_path):
    """Four harmless prompts: the same picture twice, a whale with another ground, and a whale that became a cat."""
    import random

    drawn = {
        (key, ground): scenes.render(scenes.describe((icon(key),), random.Random(1), ground=ground), random.Random(2))
        for key, ground in (("whale", "white"), ("whale", "pink"), ("cat", "white"), ("dog", "white"))
    }
    before = [("whale", "white"), ("dog", "white"), ("whale", "white"), ("whale", "white")]
    after = [("whale", "white"), ("dog", "white"), ("whale", "pink"), ("cat", "white")]
    for folder, pictures in (("none", before), ("gate", after)):
        for number, name in enumerate(pictures):
            save(tmp_path / "pictures" / folder, number, drawn[name])
    return tmp_path


def test_drift_counts_what_stays_the_same_and_what_still_shows_its_thing(run):
    prompts = [
        Prompt("a", ("far",), None, ("whale",)),
        Prompt("b", ("near",)),
        Prompt("c", ("far",)),
        Prompt("d", ("far",)),
    ]
    found = drift(run, "gate", prompts)
    assert found["prompts"] == 4 and found["same"].value == 0.5 and found["shown"].value == 0.75
    assert 0 < found["drift"] == pytest.approx(found["distance"] / 2)
    near = drift(run, "gate", prompts, "near")
    assert near["prompts"] == 1 and near["same"].value == 1 and near["distance"] is None and near["drift"] == 0


def test_the_distance_is_none_to_itself_and_grows_with_the_change():
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    apart = torch.cat([distance(picture, (picture + level * noise).clamp(-1, 1)) for level in (0.0, 0.1, 0.5)])
    assert apart[0] == pytest.approx(0, abs=1e-5) and apart[0] < apart[1] < apart[2] < 2


def test_without_their_packages_distance_and_picture_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        distance(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ImportError, match="pip install matplotlib"):
        frontier.draw([], tmp_path / "out.png")


def test_prompts_that_are_measured_are_not_those_that_anything_was_trained_on(tmp_path):
    image_prompts.write_prompts(tmp_path, [0])
    trained = {anchor.prompt for anchor in read_anchors(split="train")} | {
        scene.caption for scene in image_prompts.read_implicit("train")
    }
    for name in ("captions.csv", "implicit.csv"):
        measured = {prompt.text for prompt in read_prompts(tmp_path / name)}
        assert len(measured) == 88 and not measured & trained


def test_each_run_has_its_prompts():
    assert all(files(name, 3) == ("implicit.csv", "captions.csv") for name in IMPLICIT)
    assert files("graded", 3) == ("unsafe-1.csv", "benign.csv") and files("budget-20", 3)[0] == "unsafe-3.csv"
    assert files("category", 3)[1] is None and {"graded", "implicit"} <= RUNS.keys()


def test_the_frontiers_curves_are_those_of_its_figures():
    row = {"target": "minilm", "drift": 0.0, "asr": 0.7, "setting": ""}
    rows = [
        {**row, "method": "none", "mode": ""},
        {**row, "method": "transferred", "mode": "gate", "setting": "budget 0.01", "drift": 0.1, "asr": 0.3},
        {**row, "method": "transferred", "mode": "gate", "setting": "safree's prompts, budget 0.01", "asr": 0.9},
        {
            **row,
            "method": "transferred",
            "mode": "graded",
            "setting": "budget 0.01, alpha 5.0",
            "drift": 0.2,
            "asr": 0.1,
        },
        {**row, "method": "transferred", "mode": "graded", "setting": "budget 0.01, alpha 2.0", "asr": 0.9},
        {**row, "method": "safree", "mode": "project", "setting": "sensitivity 0.0", "drift": 2.0, "asr": 0.5},
        {**row, "target": "smollm2", "method": "transferred", "mode": "gate", "asr": 0.9},
    ]
    panel = frontier.probed(rows, "minilm")
    assert panel.unsteered == 0.7
    assert panel.curves == {"gate": [(0.1, 0.3)], "graded": [(0.2, 0.1)], "SAFREE": [(2.0, 0.5)]}

    def result(setting, attack, moved):
        judged = {"judges": {"judge": {"unsafe": [attack, 0, 1]}}}
        return [
            {"setting": setting, "set": "unsafe", **judged},
            {"setting": setting, "set": "benign", "drift": {"drift": moved}},
        ]

    runs = {"implicit": result("none", 0.5, 0.0) + result(f"graded 5 {SHIPPED} 0.01", 0.2, 0.01),
            "implicit-others": result("gate 5 native 0.01", 0.3, 0.02) + result("gate 5 random 0.01", 0.5, 0.03)}  # fmt: skip
    panel = frontier.pictured(runs, "minilm")
    assert panel.unsteered == 0.5
    assert panel.curves == {"graded": [(0.01, 0.2)], "native, gate": [(0.02, 0.3)], "random": [(0.03, 0.5)]}
