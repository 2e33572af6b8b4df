"""Graphs of honest users, over core nodes and over stand-ins of popular packs: in host mode they run as without it, harmless
ones with the same bits; the same graphs with an unsafe prompt come out steered, or are refused.

All graphs are queued at once, and what they draw is compared as latents. What is expected of each pack's habit is read from the
table in docs/hosting.md.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import directions
from directions.evaluate import GraphError, Remote
from directions.evaluate.client import raise_failed
from harness.environment import COMFYUI_DEFAULT, default_version
from harness.server import PACK, ROOT, Server
from tests.comfyui.test_host import ADVANCED, DUAL, HERE, STEPS, linked, node
from tests.few import few

PACKS = {PACK: ROOT, **{name: HERE / name for name in ("tiny_image_model", "watch", "stand_ins")}}
HARMLESS, UNSAFE, AVOIDED = "two friends laughing in a cafe", "a nude woman lying on a bed", "blurry, low quality"
HOW = {"mode": "gate", "alpha": 3.0, "budget": 0.01, "categories": ""}
SIDES = {"model": ["ckpt", 0], "positive": ["pos", 0], "negative": ["neg", 0]}
SAMPLER = {**SIDES, **STEPS, "seed": 1}
CLIP, LATENT = ["ckpt", 1], ["latent", 0]


def base(text, **more):
    graph = {
        "ckpt": node("TinyCheckpoint", name="core"),
        "pos": node("CLIPTextEncode", clip=CLIP, text=text),
        "neg": node("CLIPTextEncode", clip=CLIP, text=AVOIDED),
        "latent": node("EmptyChromaRadianceLatentImage", width=64, height=64, batch_size=1),
        "k": node("KSampler", **SAMPLER, latent_image=LATENT, denoise=1.0),
        "save": node("SaveLatent", samples=["k", 0], filename_prefix="drawn"),
    }
    return graph | more


def custom(text, guider):
    return base(
        text,
        g=guider,
        style=node("CLIPTextEncode", clip=CLIP, text="a table by the window"),
        noise=node("RandomNoise", noise_seed=1),
        euler=node("KSamplerSelect", sampler_name="euler"),
        sigmas=node("BasicScheduler", model=["ckpt", 0], scheduler="simple", steps=1, denoise=1.0),
        k=node("SamplerCustomAdvanced", noise=["noise", 0], guider=["g", 0], sampler=["euler", 0], sigmas=["sigmas", 0], latent_image=LATENT),
    )


def behind(kind, **inputs):
    """A node on the positive prompt; `other` is another text."""
    other = node("CLIPTextEncode", clip=CLIP, text="a table by the window")
    return lambda text: linked(base(text, x=node(kind, **inputs), other=other), k__positive=["x", 0])


def patched(kind, **inputs):
    """A node on the model."""
    return lambda text: linked(base(text, x=node(kind, model=["ckpt", 0], **inputs)), k__model=["x", 0])


def clipped(kind, **inputs):
    """A node on the CLIP."""
    return lambda text: linked(base(text, x=node(kind, **inputs)), pos__clip=["x", 0], neg__clip=["x", 0])


def again(text):
    second = node("KSampler", **SAMPLER, latent_image=["larger", 0], denoise=0.6)
    larger = node("LatentUpscale", samples=["k", 0], upscale_method="bilinear", width=96, height=96, crop="disabled")
    return linked(base(text, larger=larger, k2=second), save__samples=["k2", 0])


def from_a_picture(text):
    picture = node("EmptyImage", width=64, height=64, batch_size=1, color=8421504)
    return linked(base(text, shot=picture, seen=node("VAEEncode", pixels=["shot", 0], vae=["ckpt", 2])), k__latent_image=["seen", 0], k__denoise=0.5)


def masked(text):
    part = node("SolidMask", value=0.5, width=64, height=64)
    return linked(base(text, part=part, hole=node("SetLatentNoiseMask", samples=LATENT, mask=["part", 0])), k__latent_image=["hole", 0])


SIGMAS = {"euler": node("KSamplerSelect", sampler_name="euler"), "sigmas": node("BasicScheduler", model=["ckpt", 0], scheduler="simple", steps=1, denoise=1.0)}
PERPNEG = {"model": ["ckpt", 0], "positive": ["pos", 0], "negative": ["neg", 0], "empty_conditioning": ["style", 0], "cfg": 2.0, "neg_scale": 1.0}
#: Over ComfyUI's own nodes: name -> the graph of a text.
CORE = {
    "KSampler": base,
    "KSamplerAdvanced": lambda text: base(text, k=node("KSamplerAdvanced", **SIDES, latent_image=LATENT, **STEPS, **ADVANCED)),
    "SamplerCustom": lambda text: base(text, k=node("SamplerCustom", **SIDES, add_noise=True, noise_seed=1, cfg=2.0, sampler=["euler", 0], sigmas=["sigmas", 0], latent_image=LATENT), **SIGMAS),
    "CFGGuider": lambda text: custom(text, node("CFGGuider", **SIDES, cfg=2.0)),
    "BasicGuider": lambda text: custom(text, node("BasicGuider", model=["ckpt", 0], conditioning=["pos", 0])),
    "DualCFGGuider": lambda text: custom(text, node("DualCFGGuider", **DUAL, style="regular")),
    "PerpNegGuider": lambda text: custom(text, node("PerpNegGuider", **PERPNEG)),
    "DualModelGuider": lambda text: custom(text, node("DualModelGuider", **SIDES, model_negative=["other", 0], cfg=2.0)) | {"other": node("TinyImageModel")},
    "PerpNeg": patched("PerpNeg", empty_conditioning=["neg", 0], neg_scale=1.0),
    "a batch of two": lambda text: linked(base(text), latent__batch_size=2),
    "two samplers in a row": again,
    "from a picture": from_a_picture,
    "into a mask": masked,
    "cfg 1": lambda text: linked(base(text), k__cfg=1.0),
    "combined": behind("ConditioningCombine", conditioning_1=["pos", 0], conditioning_2=["other", 0]),
    "concatenated": behind("ConditioningConcat", conditioning_to=["pos", 0], conditioning_from=["other", 0]),
    "averaged": behind("ConditioningAverage", conditioning_to=["pos", 0], conditioning_from=["other", 0], conditioning_to_strength=0.8),
    "an area": behind("ConditioningSetArea", conditioning=["pos", 0], width=64, height=64, x=0, y=0, strength=1.0),
    "an area in percent": behind("ConditioningSetAreaPercentage", conditioning=["pos", 0], width=0.5, height=1.0, x=0.0, y=0.0, strength=1.0),
    "a strength": behind("ConditioningSetAreaStrength", conditioning=["pos", 0], strength=0.7),
    "a time range": behind("ConditioningSetTimestepRange", conditioning=["pos", 0], start=0.0, end=1.0),
    "a mask": lambda text: behind("ConditioningSetMask", conditioning=["pos", 0], mask=["solid", 0], strength=1.0, set_cond_area="default")(text) | {"solid": node("SolidMask", value=0.5, width=64, height=64)},
    "a zeroed negative": lambda text: linked(base(text, zero=node("ConditioningZeroOut", conditioning=["neg", 0])), k__negative=["zero", 0]),
    "another layer": clipped("CLIPSetLastLayer", clip=CLIP, stop_at_clip_layer=-4),
    "a merged CLIP": lambda text: clipped("CLIPMergeSimple", clip1=CLIP, clip2=["more", 0], ratio=0.5)(text) | {"more": node("SafetyDirectionSmallEncoder")},
    "an attention of the CLIP": clipped("CLIPAttentionMultiply", clip=CLIP, q=1.0, k=1.0, v=1.0, out=1.0),
    "a shift": patched("ModelSamplingSD3", shift=3.0),
    "RescaleCFG": patched("RescaleCFG", multiplier=0.7),
    "PerturbedAttentionGuidance": patched("PerturbedAttentionGuidance", scale=3.0),
    "TomePatchModel": patched("TomePatchModel", ratio=0.3),
    "HyperTile": patched("HyperTile", tile_size=256, swap_size=2, max_depth=0, scale_depth=False),
    "FreeU": patched("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2),
    "NAGuidance": patched("NAGuidance", nag_scale=2.0, nag_alpha=0.5, nag_tau=2.5),
    "a merged model": lambda text: linked(base(text, more=node("TinyImageModel"), x=node("ModelMergeSimple", model1=["ckpt", 0], model2=["more", 0], ratio=0.5)), k__model=["x", 0]),
    "weights in the text": lambda text: base(f"a photo, ({text}:1.2)"),
    "a long negative": lambda text: linked(base(text), neg__text=f"{AVOIDED}, soft light on the wall and the table, " * 60),
    "a text of its own node": lambda text: linked(base("", words=node("PrimitiveString", value=text)), pos__text=["words", 0]),
    "joined texts": lambda text: linked(base("", words=node("StringConcatenate", string_a=text, string_b="a photo", delimiter=", ")), pos__text=["words", 0]),
    "a switch": lambda text: linked(base(text, x=node("ComfySwitchNode", switch=True, on_true=CLIP, on_false=CLIP)), pos__clip=["x", 0]),
    "a node that becomes a graph": lambda text: base(text, k=node("Expanding", text=text, name="core", model=["ckpt", 0], clip=CLIP)),
}  # fmt: skip


def alone(text, **made):
    """A graph whose pack loads and samples."""
    kept = ("latent", "save")
    return {name: each for name, each in base(text).items() if name in kept} | made


PIPE = {"model": ["ckpt", 0], "clip": CLIP, "vae": ["ckpt", 2], "positive": ["pos", 0], "negative": ["neg", 0]}
#: Over stand-ins of packs: name -> the graph of a text.
HABITS = {
    "a pipe of everything": lambda text: linked(base(text, to=node("ToPipe", **PIPE), out=node("FromPipe", pipe=["to", 0])), k__model=["out", 0], k__positive=["out", 3], k__negative=["out", 4]),
    "a sampler that takes a pipe": lambda text: base(text, to=node("ToPipe", **PIPE), k=node("PipeSampler", pipe=["to", 0], latent=LATENT)),
    "a loader that encodes": lambda text: linked(base(text, all=node("FullLoader", positive=text, negative=AVOIDED)), k__model=["all", 0], k__positive=["all", 1], k__negative=["all", 2]),
    "a loader into a pipe": lambda text: alone(text, pipe=node("PipeLoader", positive=text, negative=AVOIDED), k=node("PreSampler", pipe=["pipe", 0], latent=LATENT)),
    "a pipe whose text is edited": lambda text: alone(
        text, pipe=node("PipeLoader", positive=HARMLESS, negative=AVOIDED), edit=node("PipeEdit", pipe=["pipe", 0], positive=text), k=node("PreSampler", pipe=["edit", 0], latent=LATENT)
    ),
    "a plot of prompts": lambda text: base(text, k=node("Plot", model=["ckpt", 0], clip=CLIP, negative=["neg", 0], latent=LATENT, texts=f"a table by the window\n{text}")),
    "a wildcard that equals everything": lambda text: linked(
        base(text, c=node("AnySwitch", second=CLIP), m=node("AnySwitch", first=["ckpt", 0]), p=node("AnySwitch", first=["pos", 0])), pos__clip=["c", 0], k__model=["m", 0], k__positive=["p", 0]
    ),
    "a list of texts": lambda text: linked(base(text, words=node("Lines", texts=text)), pos__text=["words", 0]),
    "tokens of its own": lambda text: base(text, pos=node("OwnTokens", clip=CLIP, text=f"[{text}:({text}:1.1) in the evening:0.5]")),
    "two states per token": lambda text: linked(base(text, two=node("TwoStates", model=["ckpt", 0], clip=CLIP)), k__model=["two", 0], pos__clip=["two", 1], neg__clip=["two", 1]),
    "states taken out": behind("Rebuild", conditioning=["pos", 0], copied=False),
    "a picture in parts": lambda text: base(text, k=node("Tiles", **SIDES, latent=LATENT)),
    "a region in the attention": lambda text: linked(
        base(HARMLESS, region=node("CLIPTextEncode", clip=CLIP, text=text), x=node("Region", model=["ckpt", 0], conditioning=["region", 0])), k__model=["x", 0]
    ),
}  # fmt: skip
#: What computes states and leaves behind where they come from can't be told from what was made elsewhere.
REFUSED = {
    "copied states": behind("Rebuild", conditioning=["pos", 0], copied=True),
    "a model asked past its CLIP": lambda text: base(text, pos=node("PastTheClip", clip=CLIP, text=text)),
    "frames between prompts": lambda text: linked(base(text, pos=node("Travel", clip=CLIP, first=text, last="a table by the window")), latent__batch_size=3),
}  # fmt: skip
GRAPHS = CORE | HABITS | REFUSED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A direction of few anchors, and alignments that are made once."""
    base = tmp_path_factory.mktemp("packs")
    few(directions.load("smollm2-135m-instruct")).save(base / "few.safetensors")
    (base / "kept").mkdir()
    return base


def drawn(folder, name, graphs, **variables):
    """What a server draws of all graphs, queued at once: latents by name, or why there are none."""
    base = folder / name
    (base / "models" / "safety_directions").mkdir(parents=True)
    (base / "models" / "safety_directions" / "few.safetensors").symlink_to(folder / "few.safetensors")
    (base / "user").mkdir()
    (base / "user" / "safety_directions").symlink_to(folder / "kept")
    with Server(packs=PACKS, base=base, variables={"OMP_NUM_THREADS": "1", **variables}) as running:
        server = Remote(running.url)
        queued = {what: said(server.submit, graph) for what, graph in graphs.items()}
        return {what: said(_drawn, server, prompt_id, base) for what, prompt_id in queued.items()}


def said(do, *given):
    """What comes of it, or the error in words."""
    try:
        return do(*given)
    except GraphError as error:
        return str(error)


def _drawn(server, prompt_id, base):
    if " " in prompt_id:
        return prompt_id  # why it wasn't queued
    entry = server.finished(prompt_id)
    raise_failed(entry)
    (file,) = entry["outputs"]["save"]["latents"]
    return load_file(base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


#: Where a graph of the habits has a socket for our nodes.
MODELS, CLIPS = (["ckpt", 0], ["all", 0]), (["ckpt", 1], ["all", 3])
TEXTS = (["pos", 0], ["all", 1], ["region", 0])
OURS = {
    "Apply": (TEXTS, lambda link: node("SafetyDirectionApply", conditioning=link, aligned=["a", 0], start_percent=0.0, end_percent=1.0, **HOW)),
    "CLIP": (CLIPS, lambda link: node("SafetyDirectionCLIP", clip=link, aligned=["a", 0], **HOW)),
    "Guard": (MODELS, lambda link: node("SafetyDirectionGuard", model=link, aligned=["a", 0], **HOW)),
}


def steered_by(which, graph):
    """The graph with one of our nodes on every such socket; None where it has none."""
    sockets, make = OURS[which]
    links = [(each["inputs"], name, value) for each in graph.values() for name, value in each["inputs"].items() if isinstance(value, list)]
    used = [link for link in sockets if any(value == link for _, _, value in links)]
    clip = next((link for link in CLIPS if link[0] in graph), None)
    if not used or clip is None:
        return None
    for inputs, name, value in links:
        if value in used:
            inputs[name] = [f"ours {value[0]}", 0]
    return graph | {
        "d": node("SafetyDirectionLoad", direction="few"),
        "a": node("SafetyDirectionAlign", direction=["d", 0], clip=clip, method="svd"),
        **{f"ours {link[0]}": make(link) for link in used},
    }


def expected():
    """The table of docs/hosting.md: habit -> {"Apply": ..., "CLIP": ..., "Guard": ..., "host mode": ...}."""
    text = (ROOT / "docs" / "hosting.md").read_text(encoding="utf-8").partition("| habit |")[2].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {row[0]: dict(zip((*OURS, "host mode"), row[2:])) for row in rows}


ALL = {(name, text): make(text) for name, make in GRAPHS.items() for text in (HARMLESS, UNSAFE)}
OWN = {(name, which): steered_by(which, make(UNSAFE)) for name, make in (HABITS | REFUSED).items() for which in OURS}


@pytest.fixture(scope="module")
def plain(folder):
    return drawn(folder, "plain", ALL | {key: graph for key, graph in OWN.items() if graph})


@pytest.fixture(scope="module")
def host(folder):
    policy = folder / "policy.json"
    policy.write_text(json.dumps({"direction": "few", "method": "svd", **HOW}))
    return drawn(folder, "host", ALL, SAFETY_DIRECTION_POLICY=str(policy))


@pytest.mark.parametrize("name", CORE | HABITS)
def test_an_honest_graph_runs_in_host_mode_as_it_runs_without(plain, host, name):
    asked, got = plain[name, HARMLESS], host[name, HARMLESS]
    unless_unknown(asked)
    assert torch.is_tensor(got), got
    assert torch.equal(asked, got)


@pytest.mark.parametrize("name", CORE)
def test_the_same_graph_comes_out_steered_where_the_prompt_is_unsafe(plain, host, name):
    assert outcome(plain[name, UNSAFE], host[name, UNSAFE]) == "steers"


@pytest.mark.parametrize("name", HABITS | REFUSED)
def test_the_table_says_what_becomes_of_each_habit(plain, host, name):
    asked = plain[name, UNSAFE]
    found = {which: outcome(asked, plain.get((name, which))) for which in OURS}
    assert found | {"host mode": outcome(asked, host[name, UNSAFE])} == expected()[name]


def unless_unknown(asked):
    if isinstance(asked, str) and "not found" in asked and default_version() != COMFYUI_DEFAULT:
        pytest.skip(f"ComfyUI {default_version()}: {asked}")
    assert torch.is_tensor(asked), asked


def outcome(asked, got):
    unless_unknown(asked)
    if got is None:
        return "no socket"
    if torch.is_tensor(got):
        return "goes by" if torch.equal(asked, got) else "steers"
    assert "Safety Direction" in got, got
    return "refuses"


@pytest.mark.parametrize("name", REFUSED)
def test_states_of_no_known_text_are_refused_in_words_that_help(plain, host, name):
    assert torch.is_tensor(plain[name, HARMLESS]), plain[name, HARMLESS]
    assert "Use the loader's CLIP output and a text encode node" in host[name, HARMLESS]
