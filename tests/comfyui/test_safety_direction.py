"""The one node: MODEL and CLIP in and out, one alignment, nothing else to connect. A real KSampler sees what it does."""

from __future__ import annotations

import itertools
import json
from io import BytesIO

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from harness.server import GraphError
from tests.comfyui.graphs import UNSAFE, shown

BENIGN = "two friends laughing in a cafe"
COUNT = itertools.count()
HOW = {"direction": "few", "mode": "add", "alpha": 3.0, "budget": 0.01, "categories": ""}


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def graph(*sockets, positive=UNSAFE, negative="blurry", use=None, **how):
    """A sampling graph; `sockets` of the one node are connected, and of these `use` go on from it."""
    prompt = {
        "load": node("TinyImageModel"),
        "watch": node("WatchModel", model=["load", 0], name=f"one-{next(COUNT)}"),
        "encoder": node("SafetyDirectionSmallEncoder"),
        "latent": node("EmptyChromaRadianceLatentImage", width=32, height=32, batch_size=1),
        "one": node("SafetyDirection", **HOW | how),
        "pos": node("CLIPTextEncode", clip=["encoder", 0], text=positive),
        "neg": node("CLIPTextEncode", clip=["encoder", 0], text=negative),
        "k": node("KSampler", model=["watch", 0], positive=["pos", 0], negative=["neg", 0], latent_image=["latent", 0]),
        "decode": node("VAEDecode", samples=["k", 0], vae=["load", 1]),
        "out": node("PreviewImage", images=["decode", 0]),
    }
    prompt["k"]["inputs"] |= {"seed": 1, "steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
    prompt["k"]["inputs"]["denoise"] = 1.0
    if "model" in sockets:
        prompt["one"]["inputs"]["model"] = ["watch", 0]
    if "clip" in sockets:
        prompt["one"]["inputs"]["clip"] = ["encoder", 0]
    use = sockets if use is None else use
    if "model" in use:
        prompt["k"]["inputs"]["model"] = ["one", 0]
    if "clip" in use:
        prompt["pos"]["inputs"]["clip"] = prompt["neg"]["inputs"]["clip"] = ["one", 1]
    return prompt


def seen(server, prompt):
    """Run it: the states that the model was called with, positive and negative, over the tokens."""
    server.queue(prompt)
    by_side = load_file(server.base / "output" / f"{prompt['watch']['inputs']['name']}.safetensors")
    return [by_side[side][0] for side in sorted(by_side)]


@pytest.fixture(scope="module")
def plain(tiny):
    return seen(tiny, graph())


@pytest.fixture(scope="module")
def steered(tiny):
    """As Load, Align and Apply steer the positive prompt."""
    prompt = graph()
    prompt |= {
        "d": node("SafetyDirectionLoad", direction="few"),
        "a": node("SafetyDirectionAlign", direction=["d", 0], clip=["encoder", 0], method="auto"),
        "apply": node("SafetyDirectionApply", conditioning=["pos", 0], aligned=["a", 0], start_percent=0.0, end_percent=1.0),
    }
    prompt["apply"]["inputs"] |= {name: value for name, value in HOW.items() if name != "direction"}
    prompt["k"]["inputs"]["positive"] = ["apply", 0]
    return seen(tiny, prompt)


@pytest.mark.parametrize(
    ("sockets", "use"),
    [
        (("model", "clip"), ("model", "clip")),
        (("model", "clip"), ("model",)),  # prompts encoded with the plain CLIP: the guard steers them
    ],
)
def test_it_steers_as_the_three_nodes_do_and_leaves_a_negative_prompt_its_force(tiny, plain, steered, sockets, use):
    positive, negative = seen(tiny, graph(*sockets, use=use))
    assert torch.equal(positive, steered[0]) and not torch.equal(positive, plain[0])
    assert torch.equal(negative, plain[1])


def test_with_a_clip_alone_it_steers_what_is_encoded(tiny, plain, steered):
    positive, negative = seen(tiny, graph("clip"))
    assert torch.equal(positive, steered[0]) and not torch.equal(negative, plain[1])


def test_a_model_alone_is_guarded_where_the_prompts_come_from_a_clip_that_steers(tiny, steered):
    prompt = graph("model")
    prompt["other"] = node("SafetyDirection", clip=["encoder", 0], **HOW)
    prompt["pos"]["inputs"]["clip"] = ["other", 1]
    assert torch.equal(seen(tiny, prompt)[0], steered[0])
    with pytest.raises(GraphError, match="Safety Direction: a conditioning .* carries no alignment. Connect a CLIP"):
        seen(tiny, graph("model", budget=0.02))


@pytest.mark.parametrize(("connected", "missing"), [("model", "CLIP"), ("clip", "MODEL")])
def test_an_output_whose_input_is_empty_says_what_to_connect(tiny, connected, missing):
    with pytest.raises(GraphError, match=f"Safety Direction: for this, connect its {missing} input"):
        tiny.queue(graph(connected, use=("model", "clip")))


def test_with_nothing_connected_it_says_so(tiny):
    with pytest.raises(GraphError, match="connect a MODEL, a CLIP, or best both") as caught:
        tiny.queue(graph(use=("clip",)))
    assert caught.value.node_type == "SafetyDirection"


def test_inspect_is_fed_by_it_alone(tiny):
    prompt = graph("clip")
    prompt["inspect"] = node("SafetyDirectionInspect", conditioning=["pos", 0], aligned=["one", 2], budget=0.01)
    prompt["inspect"]["inputs"] |= {"clip": ["one", 1], "prompt": UNSAFE}
    for name in ("load", "watch", "latent", "k", "decode", "out", "neg"):
        del prompt[name]
    found = shown(tiny.queue(prompt), "inspect")
    assert "nude" in found["words"] and found["before"]["global"]["score"] > found["after"]["global"]["score"]


@pytest.mark.parametrize("sockets", [("model", "clip"), ("clip",)])
def test_refuse_stops_before_sampling_and_names_the_node(tiny, sockets):
    prompt = graph(*sockets, mode="gate", on_flag="refuse", budget=0.5)
    with pytest.raises(GraphError, match="Safety Direction refused this prompt: .* over the threshold"):
        tiny.queue(prompt)
    assert not (tiny.base / "output" / f"{prompt['watch']['inputs']['name']}.safetensors").exists()


def test_a_negative_prompt_is_no_reason_to_refuse_where_the_model_is_guarded(tiny, plain):
    prompt = graph("model", "clip", positive=BENIGN, negative=UNSAFE, mode="gate", on_flag="refuse")
    assert torch.equal(seen(tiny, prompt)[1], seen(tiny, graph(positive=BENIGN, negative=UNSAFE))[1])


def test_the_alignment_is_kept_and_shared_with_align(tiny, steered):
    progress = []
    tiny.free()
    tiny.queue(graph("model", "clip", alpha=2.5), on_progress=lambda p: progress.append((p.node_type, p.maximum)))
    assert not [maximum for kind, maximum in progress if kind == "SafetyDirection" and maximum > 0]


def test_a_direction_that_is_not_there_is_refused_before_anything_runs(tiny):
    with pytest.raises(GraphError, match="no direction|not in list") as caught:
        tiny.queue(graph("model", "clip", direction="../../etc/passwd"))
    assert caught.value.node_id == "one"


def saved(server, prompt):
    """Run it with SaveImage: what the picture's metadata says under our key."""
    prompt["out"] = node("SaveImage", images=["decode", 0], filename_prefix="noted")
    (reference,) = server.queue(prompt).outputs["out"]["images"]
    text = Image.open(BytesIO(server.image(reference))).text
    return json.loads(text.get("safety_direction", "[]"))


def test_a_saved_picture_says_how_it_was_steered_also_where_only_the_seed_changed(tiny):
    prompt = graph("model", "clip", mode="gate")
    for seed in (11, 12):
        prompt["k"]["inputs"]["seed"] = seed
        (said,) = saved(tiny, prompt)
        assert (said["node"], said["direction"], said["mode"]) == ("Safety Direction", "few", "gate")
        assert said["budget"] == 0.01 and said["score"] > 1 and said["flagged"]
        assert said["why"].startswith("global score +")
    (said,) = saved(tiny, graph("model", "clip", mode="gate", positive=BENIGN))
    assert not said["flagged"] and said["why"] == ""


def test_a_picture_that_nothing_steered_says_nothing_of_it(tiny):
    assert saved(tiny, graph()) == []
