"""What the sampler sees, by entry point: Apply, CLIP, Guard. A real KSampler on ComfyUI's own UNet class, a trained encoder."""

from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file

from harness.server import PACK, ROOT, GraphError, Server

HERE = ROOT / "tests" / "comfyui"
UNSAFE = "a nude woman lying on a bed"
BENIGN = "two friends laughing in a cafe"
NAMES = {"apply": "Apply Safety Direction", "clip": "Safety Direction CLIP", "guard": "Safety Direction Guard"}
COUNT = itertools.count()


@pytest.fixture(scope="module")
def server():
    with Server(packs={PACK: ROOT, "tiny_image_model": HERE / "tiny_image_model", "watch": HERE / "watch"}) as running:
        yield running


def graph(
    *entries, positive=UNSAFE, negative="blurry", mode="add", cfg=2.0, on_flag="steer", sampler="KSampler", **guard
):
    """A sampling graph with the entry points in `entries`; `watch` sees what the model is called with."""
    how = {"mode": mode, "alpha": 3.0, "budget": 0.01, "categories": "", "on_flag": on_flag}
    prompt = {
        "load": {"class_type": "TinyImageModel", "inputs": {}},
        "watch": {"class_type": "WatchModel", "inputs": {"model": ["load", 0], "name": f"seen-{next(COUNT)}"}},
        "encoder": {"class_type": "SafetyDirectionSmallEncoder", "inputs": {}},
        "direction": {"class_type": "SafetyDirectionLoad", "inputs": {"direction": "smollm2-135m-instruct"}},
        "align": {
            "class_type": "SafetyDirectionAlign",
            "inputs": {"direction": ["direction", 0], "clip": ["encoder", 0], "method": "svd"},
        },
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["encoder", 0], "text": positive}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["encoder", 0], "text": negative}},
        "latent": {
            "class_type": "EmptyChromaRadianceLatentImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 1},
        },
    }
    model, conditioning = ["watch", 0], ["positive", 0]
    if "clip" in entries:
        prompt["clip"] = {
            "class_type": "SafetyDirectionCLIP",
            "inputs": {"clip": ["encoder", 0], "aligned": ["align", 0], **how},
        }
        for side in ("positive", "negative"):
            prompt[side]["inputs"]["clip"] = ["clip", 0]
    if "apply" in entries:
        inputs = {
            "conditioning": conditioning,
            "aligned": ["align", 0],
            "start_percent": 0.0,
            "end_percent": 1.0,
            **how,
        }
        prompt["apply"] = {"class_type": "SafetyDirectionApply", "inputs": inputs}
        conditioning = ["apply", 0]
    if "guard" in entries:
        prompt["guard"] = {
            "class_type": "SafetyDirectionGuard",
            "inputs": {"model": model, "aligned": ["align", 0], **how, **guard},
        }
        model = ["guard", 0]
    return prompt | sampling(sampler, model, conditioning, ["negative", 0], cfg)


def sampling(sampler, model, positive, negative, cfg):
    if sampler == "KSampler":
        inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": ["latent", 0]}
        inputs |= {"seed": 1, "steps": 1, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        nodes = {"sample": {"class_type": "KSampler", "inputs": inputs}}
    else:
        guider = {
            "BasicGuider": {"model": model, "conditioning": positive},
            "CFGGuider": {"model": model, "positive": positive, "negative": negative, "cfg": cfg},
            "DualCFGGuider": {"model": model, "cond1": positive, "cond2": negative, "negative": negative}
            | {"cfg_conds": cfg, "cfg_cond2_negative": cfg, "style": "regular"},
        }[sampler]
        inputs = {
            "noise": ["noise", 0],
            "guider": ["guider", 0],
            "sampler": ["euler", 0],
            "sigmas": ["sigmas", 0],
            "latent_image": ["latent", 0],
        }
        nodes = {
            "guider": {"class_type": sampler, "inputs": guider},
            "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 1}},
            "euler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
            "sigmas": {
                "class_type": "BasicScheduler",
                "inputs": {"model": model, "scheduler": "simple", "steps": 1, "denoise": 1.0},
            },
            "sample": {"class_type": "SamplerCustomAdvanced", "inputs": inputs},
        }
    decode = {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["load", 1]}}
    return nodes | {"decode": decode, "preview": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}}}


def seen(server, prompt):
    """Run it: what the model was called with, by side (positive, negative), [tokens, width] each."""
    server.queue(prompt)
    by_side = load_file(server.base / "output" / f"{prompt['watch']['inputs']['name']}.safetensors")
    return [_once(by_side[side][0]) for side in sorted(by_side)]


def _once(states):
    """Prompts of two lengths in one batch are repeated to a common length; undo it."""
    return next(
        states[:n]
        for n in range(1, len(states) + 1)
        if len(states) % n == 0 and torch.equal(states[:n].repeat(len(states) // n, 1), states)
    )


@pytest.fixture(scope="module")
def plain(server):
    return seen(server, graph())


@pytest.fixture(scope="module")
def steered(server):
    """Positive and negative as Apply steers them."""
    swapped = graph("apply", positive="blurry", negative=UNSAFE)
    return seen(server, graph("apply"))[0], seen(server, swapped)[0]


@pytest.mark.parametrize(
    ("entries", "positive_moves", "negative_moves"),
    [
        (("apply",), True, False),  # what it is put behind, here the positive prompt
        (("clip",), True, True),  # everything the CLIP encodes
        (("guard",), True, False),  # what is generated
        (("clip", "guard"), True, False),  # the Guard gives the negative prompt its force back
        (("apply", "clip", "guard"), True, False),
    ],
)
def test_each_entry_point_steers_its_side_once(server, plain, steered, entries, positive_moves, negative_moves):
    positive, negative = seen(server, graph(*entries))
    assert torch.equal(positive, steered[0] if positive_moves else plain[0])
    assert torch.equal(negative, steered[1] if negative_moves else plain[1])
    assert not torch.equal(steered[0], plain[0])


def test_a_negative_prompt_keeps_its_force_in_gate_mode(server):
    harsh = {"positive": BENIGN, "negative": UNSAFE, "mode": "gate"}
    plain = seen(server, graph(**harsh))
    for entries in (("apply",), ("guard",), ("clip", "guard")):
        assert all(map(torch.equal, seen(server, graph(*entries, **harsh)), plain)), entries
    positive, negative = seen(server, graph("clip", **harsh))
    assert torch.equal(positive, plain[0]) and not torch.equal(negative, plain[1])


def test_below_cfg_1_the_negative_prompt_is_what_is_generated_and_is_steered(server, steered):
    positive, negative = seen(server, graph("guard", cfg=0.5))
    assert torch.equal(positive, steered[0]) and torch.equal(negative, steered[1])


def test_side_both_steers_both(server, steered):
    assert all(map(torch.equal, seen(server, graph("guard", side="both")), steered))


@pytest.mark.parametrize("sampler", ["BasicGuider", "CFGGuider", "DualCFGGuider"])
def test_the_guard_holds_under_every_guider(server, plain, steered, sampler):
    # DualCFGGuider's second conditioning is generated too; here it is the text of the negative one.
    expected = {
        "BasicGuider": [steered[0]],
        "CFGGuider": [steered[0], plain[1]],
        "DualCFGGuider": [plain[1], steered[1], steered[0]],
    }[sampler]
    assert all(map(torch.equal, seen(server, graph("guard", sampler=sampler)), expected))


@pytest.mark.parametrize("entry", list(NAMES))
def test_refuse_stops_before_sampling_and_names_the_node(server, entry):
    prompt = graph(entry, mode="gate", on_flag="refuse")
    with pytest.raises(GraphError, match=f"{NAMES[entry]} refused this prompt: global score .* over the threshold"):
        server.queue(prompt)
    assert not (server.base / "output" / f"{prompt['watch']['inputs']['name']}.safetensors").exists()
    assert len(seen(server, graph(entry, mode="gate", on_flag="refuse", positive=BENIGN))) == 2


def test_refuse_in_the_guard_counts_what_a_clip_already_steered(server):
    prompt = graph("clip", "guard", mode="gate")
    prompt["guard"]["inputs"]["on_flag"] = "refuse"
    with pytest.raises(GraphError, match="Safety Direction Guard refused"):
        server.queue(prompt)


@pytest.mark.parametrize("mark", ["made up", "moved"])
def test_a_forged_mark_does_not_switch_the_guard_off(server, steered, mark):
    prompt = graph("apply", "guard")
    prompt["forge"] = {
        "class_type": "Tamper",
        "inputs": {"conditioning": ["positive", 0], "steered": ["apply", 0], "mark": mark},
    }
    prompt["sample"]["inputs"]["positive"] = ["forge", 0]
    assert torch.equal(seen(server, prompt)[0], steered[0])


def test_strict_lets_only_the_same_settings_pass(server, plain):
    weak = graph("apply", "guard", strict=True)
    weak["apply"]["inputs"]["alpha"] = 0.0
    assert not torch.equal(seen(server, weak)[0], plain[0])
    weak = graph("apply", "guard")
    weak["apply"]["inputs"]["alpha"] = 0.0
    assert torch.equal(seen(server, weak)[0], plain[0])


def test_the_clip_survives_clip_set_last_layer_and_leaves_the_original_alone(server, plain, steered):
    # The encoder has fewer than 24 layers, so that ComfyUI takes its last, as without the node.
    prompt = graph("clip")
    prompt["last"] = {"class_type": "CLIPSetLastLayer", "inputs": {"clip": ["clip", 0], "stop_at_clip_layer": -24}}
    prompt["positive"]["inputs"]["clip"] = ["last", 0]
    prompt["negative"]["inputs"]["clip"] = ["encoder", 0]
    positive, negative = seen(server, prompt)
    assert torch.equal(positive, steered[0]) and torch.equal(negative, plain[1])


def test_a_guard_without_an_alignment_says_what_to_connect(server):
    prompt = graph("guard")
    del prompt["guard"]["inputs"]["aligned"]
    with pytest.raises(
        GraphError, match="Safety Direction Guard: a conditioning that reaches the sampler carries no alignment"
    ):
        server.queue(prompt)
    prompt = graph("clip", "guard")
    del prompt["guard"]["inputs"]["aligned"]
    assert len(seen(server, prompt)) == 2
