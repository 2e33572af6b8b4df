"""Type a Direction: words in, an ordinary aligned direction out, on a trained encoder in a real ComfyUI."""

from __future__ import annotations

import pytest

from harness.server import GraphError
from tests.comfyui.graphs import UNSAFE, graph, shown

SMOKER = "an old sailor with a cigarette between his fingers, harbour, overcast"
FRIENDS = "two friends laughing in a cafe"


def typed(prompt, words="cigarettes", **inputs):
    """`graph` with the words in the place of the aligned direction; with `aligned` they are added to it."""
    queued = graph(prompt, mode="gate")
    queued["typed"] = {"class_type": "SafetyDirectionType", "inputs": {"clip": ["clip", 0], "words": words, **inputs}}
    for node in ("apply", "plain", "steered"):
        queued[node]["inputs"]["aligned"] = ["typed", 0]
    return queued


@pytest.mark.parametrize(("prompt", "flagged"), [(SMOKER, True), (FRIENDS, False)])
def test_what_is_typed_is_found_and_steered_away(tiny, prompt, flagged):
    result = tiny.queue(typed(prompt))
    before, after = (shown(result, node) for node in ("plain", "steered"))
    assert before["flagged"] is flagged and after["flagged"] is False


def test_the_same_words_are_not_read_again(tiny):
    tiny.queue(typed(SMOKER))
    folder = tiny.base / "user" / "safety_directions"
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    result = tiny.queue(typed("a man lighting a cigarette under a streetlamp", words="cigarettes,"))
    assert "typed" not in result.cached, "the node itself ran again"
    assert shown(result, "plain")["flagged"]
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == kept


def test_words_are_added_to_an_aligned_direction(tiny):
    for prompt in (SMOKER, UNSAFE):
        result = tiny.queue(typed(prompt, aligned=["align", 0]))
        assert shown(result, "plain")["flagged"] and not shown(result, "steered")["flagged"], prompt
    assert not shown(tiny.queue(typed(FRIENDS, aligned=["align", 0])), "plain")["flagged"]


@pytest.mark.parametrize(
    ("words", "message"), [("the", "'the' would flag everything"), (" , ", "1 to 32 words"), ("global", "leave it out")]
)
def test_words_that_make_no_direction_are_refused(tiny, words, message):
    with pytest.raises(GraphError, match=message):
        tiny.queue(typed(FRIENDS, words))
