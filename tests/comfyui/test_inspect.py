"""Inspect shows what steering changed, word by word, and Apply says what it found."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from harness.server import GraphError
from tests.comfyui.graphs import UNSAFE, graph, shown


def test_inspect_shows_a_steered_prompt_as_it_was_and_as_it_is(tiny):
    result = tiny.queue(graph(mode="gate"))
    plain, steered = shown(result, "plain"), shown(result, "steered")
    assert plain["before"] is None and steered["before"] == plain["after"]
    assert steered["after"]["global"]["score"] < min(
        steered["before"]["global"]["score"] - 2, 1
    )  # to where harmless prompts are
    assert set(steered["after"]) == {"global", "disturbing", "hate", "humiliation", "illegal", "sexual", "violence"}
    low, high = plain["after"]["global"]["band"]
    assert low < 0 < high < plain["after"]["global"]["threshold"]


def test_inspect_shows_a_steered_clip_as_it_was_too(tiny):
    steered = graph()
    apply = steered.pop("apply")["inputs"]
    settings = {name: apply[name] for name in ("mode", "alpha", "budget", "categories")}
    steered["safe"] = {
        "class_type": "SafetyDirectionCLIP",
        "inputs": {"clip": ["clip", 0], "aligned": ["align", 0], **settings},
    }
    steered["apply"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["safe", 0], "text": UNSAFE}}
    result = tiny.queue(steered)
    assert shown(result, "steered")["before"] == shown(result, "plain")["after"]


def test_a_word_of_several_tokens_is_one_word(tiny):
    reading = shown(tiny.queue(graph()), "plain")
    assert "photorealism" in reading["words"] and len(reading["words"]) == len(reading["after"]["global"]["words"])
    assert " ".join(reading["words"]).replace(" - ", "-") == UNSAFE


def test_a_category_colours_the_words_by_its_own_scores(tiny):
    both = graph()
    for name, category in (("plain", ""), ("steered", "sexual")):
        both[name]["inputs"] |= {"conditioning": ["text", 0], "category": category, "theme": "dark"}
        both[f"picture {name}"] = {"class_type": "PreviewImage", "inputs": {"images": [name, 0]}}
    result = tiny.queue(both)
    pictures = [
        Image.open(BytesIO(tiny.image(result.outputs[f"picture {name}"]["images"][0]))).convert("RGB")
        for name in ("plain", "steered")
    ]
    assert pictures[0].size == pictures[1].size and pictures[0].tobytes() != pictures[1].tobytes()
    both["plain"]["inputs"]["category"] = "weather"
    with pytest.raises(GraphError, match="no category 'weather': this direction has disturbing"):
        tiny.queue(both)


def test_apply_says_whether_it_steered_or_found_it_steered(tiny):
    twice = graph(alpha=4.0)  # a strength of its own: a node whose output is cached says nothing
    twice["again"] = {
        "class_type": "SafetyDirectionApply",
        "inputs": twice["apply"]["inputs"] | {"conditioning": ["apply", 0]},
    }
    twice["steered"]["inputs"]["conditioning"] = ["again", 0]
    result = tiny.queue(twice)
    assert (shown(result, "apply")["state"], shown(result, "again")["state"]) == ("aligned", "double")


@pytest.mark.parametrize(("prompt", "budget", "flagged"), [(UNSAFE, 0.5, True), ("a red bicycle", 0.0, False)])
def test_apply_gives_the_verdict_and_the_score_before_steering_also_when_it_was_steered_before(tiny, prompt, budget, flagged):
    asked = graph(prompt, mode="gate", budget=budget)
    asked["again"] = {
        "class_type": "SafetyDirectionApply",
        "inputs": asked["apply"]["inputs"] | {"conditioning": ["apply", 0]},
    }
    for node in ("apply", "again"):
        for name, slot in (("flagged", 1), ("score", 2)):
            asked[f"{node} {name}"] = {"class_type": "PreviewAny", "inputs": {"source": [node, slot]}}
    result = tiny.queue(asked)
    said = {name: "".join(result.outputs[name]["text"]) for name in asked if "PreviewAny" == asked[name]["class_type"]}
    assert said["apply flagged"] == said["again flagged"] == str(flagged)
    assert said["apply score"] == said["again score"]
    assert round(float(said["apply score"]), 2) == shown(result, "plain")["after"]["global"]["score"]
