"""Steer every family's real text encoder classes, small and with random weights, at every entry point; writes what passed.

    python tests/comfyui/families.py OUT.json      (inside ComfyUI's Python; tests/comfyui/test_families.py runs it)

A planted direction is added and read back from what the sampler gets: it must be there on the content of every slot (cosine
0.99), and nothing else may have changed by a bit. Where the content begins is written down by hand, per family.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import importlib
import importlib.util
import io
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PROMPT = 'a small fox jumps over the green gate called "Mill" and runs'
DTYPES = ("float32", "float16", "bfloat16")
ENTRIES = ("Apply", "CLIP", "Guard")

CLIP = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2}
LLM = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 4,
}
BERT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
# What is joined to a T5 or padded to its width can't be narrower.
WIDE_T5 = T5 | {"d_model": 4096, "d_ff": 32}
SMALL = {
    "clip_l": CLIP, "clip_g": CLIP, "clip_h": CLIP, "t5xxl": T5, "umt5xxl": T5, "pile_t5xl": T5, "mt5xl": T5, "llama": LLM, "hydit_clip": BERT,
    "qwen25_7b": LLM, "qwen25_3b": LLM, "qwen3_4b": LLM, "qwen3_8b": LLM, "gemma2_2b": LLM, "mistral3_24b": LLM | {"num_hidden_layers": 31},
    "": T5,  # ByT5, which has no name
}  # fmt: skip


class Family(NamedTuple):
    """A text encoder as a loader puts it together.

    Attributes:
        clip, tokenizer: "module:name" below `comfy`; a name that ends in () is called.
        content: where the prompt's own tokens begin, by slot: None for a slot without tokens, -1 where it depends on how the
            installed transformers splits the template. The number of them is the tokenizer's.
        configs: other than SMALL.
    """

    clip: str
    tokenizer: str
    content: dict[str, int | None]
    configs: dict[str, Any] = {}
    pieces: tuple[str, ...] = ()  # keys of tokenizer data that want a sentencepiece model


FAMILIES = {
    "SD1.x": Family("sd1_clip:SD1ClipModel", "sd1_clip:SD1Tokenizer", {"cond": 1, "pooled_output": None}),
    "SD2": Family("text_encoders.sd2_clip:SD2ClipModel", "text_encoders.sd2_clip:SD2Tokenizer", {"cond": 1, "pooled_output": None}),
    "SDXL": Family("sdxl_clip:SDXLClipModel", "sdxl_clip:SDXLTokenizer", {"cond": 1, "pooled_output": None}),
    "SD3": Family(
        "text_encoders.sd3_clip:sd3_clip()", "text_encoders.sd3_clip:SD3Tokenizer", {"cond:g+l": 1, "cond:t5xxl": 77, "pooled_output": None}, {"t5xxl": WIDE_T5}
    ),
    "SD3 without T5": Family("text_encoders.sd3_clip:sd3_clip(t5=False)", "text_encoders.sd3_clip:SD3Tokenizer", {"cond": 1, "pooled_output": None}),
    "FLUX": Family("text_encoders.flux:flux_clip()", "text_encoders.flux:FluxTokenizer", {"cond": 0, "pooled_output": None}),
    "FLUX.2": Family("text_encoders.flux:flux2_te()", "odd:Flux2Tokenizer", {"cond": -1}),
    "FLUX.2 Klein": Family("text_encoders.flux:klein_te()", "text_encoders.flux:KleinTokenizer", {"cond": 3}, {"qwen3_4b": LLM | {"num_hidden_layers": 28}}),
    "Chroma": Family("text_encoders.pixart_t5:pixart_te()", "text_encoders.pixart_t5:PixArtTokenizer", {"cond": 0}),
    "PixArt": Family("text_encoders.pixart_t5:PixArtT5XXL", "text_encoders.pixart_t5:PixArtTokenizer", {"cond": 0}),
    "AuraFlow": Family("text_encoders.aura_t5:AuraT5Model", "text_encoders.aura_t5:AuraT5Tokenizer", {"cond": 0}),
    "HunyuanDiT": Family(
        "text_encoders.hydit:HyditModel", "text_encoders.hydit:HyditTokenizer", {"cond": 1, "conditioning_mt5xl": 0},
        pieces=("mt5xl.spiece_model",),
    ),
    "HunyuanImage": Family("text_encoders.hunyuan_image:te()", "text_encoders.hunyuan_image:HunyuanImageTokenizer", {"cond": 0, "conditioning_byt5small": 6}),
    "HiDream": Family(
        "text_encoders.hidream:hidream_clip()", "text_encoders.hidream:HiDreamTokenizer",
        {"cond": 0, **{f"conditioning_llama3[{i}]": 1 for i in range(4)}, "pooled_output": None},
    ),
    "Lumina2": Family("text_encoders.lumina2:te()", "text_encoders.lumina2:LuminaTokenizer", {"cond": 1}, pieces=("spiece_model",)),
    "Qwen-Image": Family("text_encoders.qwen_image:te()", "text_encoders.qwen_image:QwenImageTokenizer", {"cond": 0}),
    "Z-Image": Family("text_encoders.z_image:te()", "text_encoders.z_image:ZImageTokenizer", {"cond": 3}),
    "OmniGen2": Family("text_encoders.omnigen2:te()", "text_encoders.omnigen2:Omnigen2Tokenizer", {"cond": -1}),
    "Kandinsky 5": Family("text_encoders.kandinsky5:te()", "text_encoders.kandinsky5:Kandinsky5Tokenizer", {"cond": -1, "pooled_output": None}),
    "Wan": Family("text_encoders.wan:te()", "text_encoders.wan:WanT5Tokenizer", {"cond": 0}, pieces=("spiece_model",)),
    "HunyuanVideo": Family(
        "text_encoders.hunyuan_video:hunyuan_video_clip()", "text_encoders.hunyuan_video:HunyuanVideoTokenizer", {"cond": -1, "pooled_output": None}
    ),
    "LTX-Video": Family("text_encoders.lt:ltxv_te()", "text_encoders.lt:LTXVT5Tokenizer", {"cond": 0}),
    "Mochi": Family("text_encoders.genmo:mochi_te()", "text_encoders.genmo:MochiT5Tokenizer", {"cond": 0}),
    "CogVideoX": Family("text_encoders.cogvideo:cogvideo_te()", "text_encoders.cogvideo:CogVideoXTokenizer", {"cond": 0}),
    "Cosmos": Family("text_encoders.cosmos:te()", "text_encoders.cosmos:CosmosT5Tokenizer", {"cond": 0}),
    "an unknown encoder": Family("odd:Model", "odd:Tokenizer", {"cond": 1, "scene_states": 0, "style_vector": None}),
}  # fmt: skip


class NotHere(Exception):
    """This ComfyUI has no such encoder."""


def start_comfyui() -> Any:
    """Import ComfyUI and the pack; returns the pack's `nodes.encoders`."""
    sys.path.insert(0, os.fspath(ROOT))
    from harness.environment import find

    environment = find("test")
    sys.path[:0] = [os.fspath(environment.comfyui), *map(os.fspath, environment.pythonpath)]
    base = tempfile.mkdtemp(prefix="safety-directions-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    sys.argv = ["families", "--cpu", "--base-directory", base]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "pack", ROOT / "__init__.py", submodule_search_locations=[os.fspath(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module("pack.nodes.encoders")


def odd_encoder() -> dict[str, Any]:
    """An encoder that nobody has seen: two tokenizers, two tensors with names and shapes of their own."""
    import comfy.sd1_clip
    import torch
    from comfy.text_encoders.sd3_clip import T5XXLModel, T5XXLTokenizer

    class Tokenizer:
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            self.clip_l = comfy.sd1_clip.SDTokenizer(
                embedding_directory=embedding_directory, tokenizer_data=tokenizer_data
            )
            self.scene = T5XXLTokenizer(min_length=40)

        def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
            made = {
                "l": self.clip_l.tokenize_with_weights(text, return_word_ids),
                "scene": self.scene.tokenize_with_weights(text, return_word_ids),
            }
            return made | {"note": "not tokens"}

    class Model(torch.nn.Module):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            super().__init__()
            self.clip_l = comfy.sd1_clip.SDClipModel(device=device, dtype=dtype, model_options=model_options)
            self.t5xxl = T5XXLModel(device=device, dtype=dtype, model_options=model_options)
            self.dtypes = {dtype}

        def set_clip_options(self, options):
            self.clip_l.set_clip_options(options)
            self.t5xxl.set_clip_options(options)

        def reset_clip_options(self):
            self.clip_l.reset_clip_options()
            self.t5xxl.reset_clip_options()

        def encode_token_weights(self, tokens):
            cond, pooled = self.clip_l.encode_token_weights(tokens["l"])[:2]
            scene = self.t5xxl.encode_token_weights(tokens["scene"])[0]
            return cond, None, {"scene_states": scene, "style_vector": pooled * 2, "strength": 0.5}

    return {"Model": Model, "Tokenizer": Tokenizer}


def flux2_tokenizer() -> Any:
    """FLUX.2's template on Llama's vocabulary: its own tokenizer comes inside the weights, in a format that no longer
    loads everywhere."""
    import comfy.sd1_clip
    from comfy.text_encoders.hunyuan_video import LLAMA3Tokenizer

    flux = importlib.import_module("comfy.text_encoders.flux")
    if not hasattr(flux, "Flux2Tokenizer"):
        raise NotHere("this ComfyUI has no FLUX.2")

    class Tokens(LLAMA3Tokenizer):
        def __init__(self, **kwargs):
            super().__init__(min_length=1, pad_token=11)
            self.pad_left = True

    class Flux2Tokenizer(flux.Flux2Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            comfy.sd1_clip.SD1Tokenizer.__init__(self, name="mistral3_24b", tokenizer=Tokens)
            self.llama_template = (
                "[SYSTEM_PROMPT]You are an AI that reasons about image descriptions.[/SYSTEM_PROMPT][INST] {} [/INST]"
            )

    return Flux2Tokenizer


def look_up(path: str) -> Any:
    module, _, name = path.partition(":")
    if path == "odd:Flux2Tokenizer":
        return flux2_tokenizer()
    if module == "odd":
        return odd_encoder()[name]
    try:
        found = importlib.import_module(f"comfy.{module}")
        name, _, arguments = name.partition("(")
        value = getattr(found, name)
    except (ImportError, AttributeError):
        raise NotHere(f"this ComfyUI has no comfy.{module}") from None
    return value if not path.endswith(")") else value(**({"t5": False} if "t5=False" in arguments else {}))


def sentencepiece_model() -> Any:
    """A small sentencepiece tokenizer, made here: the real ones come inside the weights."""
    import sentencepiece
    import torch

    from directions.prompts import read_anchors

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([anchor.prompt for anchor in read_anchors()[:600]]), model_writer=out, vocab_size=400,
        pad_id=0, eos_id=1, bos_id=2, unk_id=3, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


def build(family: Family, dtype: str, embeddings: str | None = None) -> Any:
    """The family as a ComfyUI CLIP with seeded random weights."""
    import comfy.sd
    import torch

    class Target:
        params: dict[str, Any] = {}
        clip = look_up(family.clip)
        tokenizer = look_up(family.tokenizer)

    if not (isinstance(Target.clip, type)):
        raise NotHere(f"{family.clip} gives no class")
    data = {name: sentencepiece_model() for name in family.pieces}
    options = {f"{name}_model_config": config for name, config in (SMALL | family.configs).items()}
    clip = comfy.sd.CLIP(
        Target,
        embedding_directory=embeddings,
        tokenizer_data=data,
        model_options={"dtype": getattr(torch, dtype), **options},
    )
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weights in clip.cond_stage_model.named_parameters():
            if "visual" in name or "logit_scale" in name:
                continue
            if weights.dim() < 2:
                weights.fill_(0.0 if "bias" in name else 1.0)
                continue
            embedding = any(word in name for word in ("embed", "shared"))
            scale = (
                0.5 if embedding and "position" not in name else 0.05 if embedding else 0.5 / weights.shape[-1] ** 0.5
            )
            weights.copy_(torch.empty(weights.shape).normal_(generator=draw) * scale)
    return clip


def raw_length(clip: Any, keys: tuple[str, ...], prompt: str) -> int:
    """How many tokens the prompt alone is, by the tokenizer itself."""
    tokenizer = next(
        t
        for name, t in vars(clip.tokenizer).items()
        if any(name.endswith(key) or name == f"clip_{key}" for key in keys)
    )
    return (
        len(tokenizer.tokenizer(prompt)["input_ids"])
        - tokenizer.tokens_start
        - bool(tokenizer.tokenizer_adds_end_token)
    )


def small_direction() -> Any:
    import torch
    from pack.directions.direction import Direction

    from directions.prompts import read_anchors

    draw = torch.Generator().manual_seed(3)
    prompts = tuple(anchor.prompt for anchor in read_anchors()[::60][:40])
    vector = torch.randn(16, generator=draw)
    return Direction(
        vectors={"global": vector}, readers={"global": vector}, anchor_states=torch.randn(len(prompts), 16, generator=draw).half(), anchor_prompts=prompts,
        source={"model": "random", "layers": [0]}, pairs={}, licence="CC0", created="2026-01-01T00:00:00Z", tool_version="test",
    )  # fmt: skip


def plant(aligned: Any) -> Any:
    """The alignment with a direction of its own in every slot, as long as a state."""
    import torch

    draw = torch.Generator().manual_seed(5)
    slots = {}
    for name, slot in aligned.slots.items():
        vector = torch.randn(1, slot.width, generator=draw)
        slots[name] = dataclasses.replace(
            slot, vectors=vector / vector.norm() * slot.bank.float().norm(dim=1).mean().clamp_min(1.0)
        )
    return dataclasses.replace(aligned, slots=slots)


def tiny_model(name: str, width: int) -> tuple[Any, list[int]]:
    """The family's own DiT where it can be made this small, else ComfyUI's UNet, for states of this width; and a
    latent's shape."""
    import comfy.ldm.flux.model
    import comfy.model_patcher
    import comfy.supported_models as models
    import torch

    flux = {"image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 64, "context_in_dim": width,
            "hidden_size": 64, "mlp_ratio": 2.0, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000,
            "qkv_bias": True, "guidance_embed": False}  # fmt: skip
    if "txt_ids_dims" in {field.name for field in dataclasses.fields(comfy.ldm.flux.model.FluxParams)}:
        flux["txt_ids_dims"] = []
    wan = {"image_model": "wan2.1", "model_type": "t2v", "dim": 64, "ffn_dim": 128, "num_heads": 2, "num_layers": 1, "text_dim": width,
           "in_dim": 16, "out_dim": 16, "patch_size": (1, 2, 2), "freq_dim": 32, "text_len": 512, "window_size": (-1, -1),
           "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6}  # fmt: skip
    lumina = {"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 64, "cap_feat_dim": width, "n_layers": 1, "n_refiner_layers": 1,
              "n_heads": 2, "n_kv_heads": 1, "qk_norm": True, "axes_dims": [8, 12, 12], "axes_lens": [300, 64, 64], "rope_theta": 10000.0,
              "ffn_dim_multiplier": 4.0, "norm_eps": 1e-5, "multiple_of": 32}  # fmt: skip
    unet = {"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": [1], "channel_mult": [1],
            "context_dim": width, "num_heads": 2, "use_spatial_transformer": True, "transformer_depth": [1], "transformer_depth_output": [1, 1],
            "transformer_depth_middle": 1, "use_linear_in_transformer": False, "legacy": False, "adm_in_channels": None}  # fmt: skip
    kind, own, shape = {
        "FLUX": (models.Flux, flux, [1, 16, 8, 8]),
        "Wan": (models.WAN21_T2V, wan, [1, 16, 3, 8, 8]),
        "Lumina2": (models.Lumina2, lumina, [1, 16, 8, 8]),
    }.get(name, (models.SD15, unet, [1, 4, 8, 8]))
    config = kind(own)
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, device="cpu")
    draw = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for weights in model.diffusion_model.parameters():
            weights.copy_(torch.empty(weights.shape).normal_(generator=draw) * 0.05)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=torch.device("cpu"), offload_device=torch.device("cpu")
    ), shape


def what_is_sampled(
    model: Any, shape: list[int], positive: list, negative: list
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run ComfyUI's KSampler for one step: the positive conditioning that is sampled, and what the model is called
    with for it."""
    import comfy.patcher_extension
    import comfy.sample
    import torch

    conds, called = [], []
    watched = model.clone()

    def look(executor, *args, **kwargs):
        conds.append(dict(executor.class_obj.conds["positive"][0]))
        return executor(*args, **kwargs)

    def call(apply_model, options):
        sides = options["cond_or_uncond"]
        if 0 in sides:
            given = {key: value for key, value in options["c"].items() if key in ("c_crossattn", "y")}
            called.append({key: value.chunk(len(sides))[sides.index(0)].clone() for key, value in given.items()})
        return apply_model(options["input"], options["timestep"], **options["c"])

    watched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "test", look)
    watched.set_model_unet_function_wrapper(call)
    latent = torch.zeros(shape)
    comfy.sample.sample(
        watched,
        torch.randn(latent.shape),
        1,
        2.0,
        "euler",
        "simple",
        positive,
        negative,
        latent,
        disable_pbar=True,
        seed=1,
    )
    return conds[0], called


def check(before: dict, after: dict, planted: Any, expected: dict[str, Any]) -> None:
    """Every slot moved by its planted vector on its content, and nothing else moved.

    Raises:
        AssertionError: which slot, and how not.
    """
    import torch

    assert set(planted.slots) == set(expected), f"slots {sorted(planted.slots)}, expected {sorted(expected)}"
    untouched = {
        tensor: torch.ones(before[tensor].shape, dtype=torch.bool)
        for tensor in {p.tensor for p in planted.places.values()}
    }
    for name, rows in expected.items():
        place = planted.places[name]
        old, new = before[place.tensor], after[place.tensor]
        assert new.dtype == old.dtype and new.shape == old.shape, (
            f"{name}: {new.dtype} {list(new.shape)}, was {old.dtype} {list(old.shape)}"
        )
        where = (0,) if rows is None else ((0, rows) if place.layer is None else (0, place.layer, rows))
        untouched[place.tensor][(*where, slice(0, place.width))] = False
        moved = (new.float() - old.float())[(*where, slice(0, place.width))].reshape(-1, place.width)
        vector = planted.slots[name].vectors[0]
        cosine = torch.nn.functional.cosine_similarity(moved, vector.expand_as(moved), dim=1).min().item()
        size = (moved @ vector / vector.square().sum()).mean().item()
        assert cosine >= 0.99, (
            f"{name}: the planted direction comes back with cosine {cosine:.3f} at the worst of {len(moved)} tokens"
        )
        assert abs(size - 1) < 0.05, f"{name}: the planted direction comes back {size:.2f} times as long"
    for tensor, mask in untouched.items():
        stray = int(((before[tensor] != after[tensor]) & mask).sum())
        assert stray == 0, f"{tensor}: {stray} values moved outside the content"


def expected_rows(clip: Any, family: Family, aligned: Any, prompt: str = PROMPT) -> dict[str, Any]:
    """The content of every slot, from the family's own figures and the tokenizer's count."""
    rows: dict[str, Any] = {}
    for name, start in family.content.items():
        if start is None or name not in aligned.places:
            rows[name] = None
            continue
        place = aligned.places[name]
        text = "Mill" if "byt5" in name else prompt
        count = raw_length(clip, place.keys, text)
        rows[name] = slice(place.before if start < 0 else start, (place.before if start < 0 else start) + count)
    return rows


def settings_of(encoders: Any, mode: str, budget: float) -> Any:
    steer = importlib.import_module(f"{encoders.__name__.removesuffix('.nodes.encoders')}.directions.steer")
    return steer.SteeringSettings(mode, 1.0, None, budget)


def as_dict(conditioning: list) -> dict:
    return {"cond": conditioning[0][0], **conditioning[0][1]}


def cast(conditioning: list, dtype: Any) -> list:
    import torch

    def to(value: Any) -> Any:
        return value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value

    return [[to(cond), {key: to(value) for key, value in extras.items()}] for cond, extras in conditioning]


def run_family(encoders: Any, name: str, results: dict[str, str]) -> None:
    """Fill `results` with "pass" or what is wrong, by entry point and precision."""
    import torch

    family = FAMILIES[name]
    how = settings_of(encoders, "add", 0.01)
    planted = model = None
    for dtype in DTYPES:
        clip = build(family, dtype)
        with torch.inference_mode():
            if planted is None:
                aligned = encoders.align_encoder(clip, small_direction(), "svd")
                planted = plant(aligned)
                rows = expected_rows(clip, family, planted)
            fits = planted.fits(encoders.probe_states(clip, planted))
            results[f"fingerprint {dtype}"] = (
                "pass" if fits else "fail: the alignment doesn't know the encoder in this precision"
            )
            plain = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
            negative = clip.encode_from_tokens_scheduled(clip.tokenize("blurry"))
            model = model or tiny_model(name, plain[0][0].shape[-1])
            for entry in ENTRIES:
                results[f"{entry} {dtype}"] = attempt(
                    lambda: enter(
                        encoders, entry, clip, model, planted, how, plain, negative, getattr(torch, dtype), rows
                    )
                )
            if dtype == "float32":
                results["gate"] = attempt(lambda: gated(encoders, planted, plain, rows))
                results["fp8 conditioning"] = attempt(lambda: in_eight_bits(encoders, planted, how, plain, rows))
                for title, prompt in (
                    ("long prompt", " ".join([PROMPT.replace('"', "")] * 9)),
                    ("weights", PROMPT.replace("green gate", "(green gate:1.4)")),
                ):
                    results[title] = attempt(lambda: other_prompt(encoders, family, clip, planted, how, prompt))
            if dtype == "float32" and name == "SD1.x":
                results["textual inversion"] = attempt(lambda: textual_inversion(encoders, family, planted, how))
                results["LoRA and last layer"] = attempt(lambda: patched(encoders, clip, planted, how))
            if dtype == "float32" and name in LOADED:
                results["ComfyUI's loader"] = attempt(lambda: through_the_loader(encoders, name, clip, planted))
        gc.collect()


def attempt(job: Callable[[], None]) -> str:
    try:
        job()
    except AssertionError as error:
        return f"fail: {error}"
    except Exception as error:
        traceback.print_exc()
        return f"fail: {type(error).__name__}: {error}"
    return "pass"


def enter(
    encoders: Any,
    entry: str,
    clip: Any,
    model: Any,
    planted: Any,
    how: Any,
    plain: list,
    negative: list,
    dtype: Any,
    rows: dict,
) -> None:
    model, shape = model
    positive = cast(plain, dtype)
    if entry == "Apply":
        steered, sampled_with = encoders.steer_conditioning(positive, planted, how), model
    elif entry == "CLIP":
        # A text encoder gives float32 whatever its weights are.
        positive = plain
        steered, sampled_with = (
            encoders.steer_clip(clip, planted, how).encode_from_tokens_scheduled(clip.tokenize(PROMPT)),
            model,
        )
        again = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))
        assert all((as_dict(again)[k] == v).all() for k, v in as_dict(plain).items() if hasattr(v, "shape")), (
            "the original CLIP is steered too"
        )
    else:
        steered, sampled_with = positive, encoders.guard_model(model, planted, how)
    conds, called = what_is_sampled(
        sampled_with, shape, steered, cast(negative, dtype) if entry != "CLIP" else negative
    )
    check(as_dict(positive), {**conds, "cond": conds["cross_attn"]}, planted, rows)
    given = called[0]["c_crossattn"].float()[0, : conds["cross_attn"].shape[1]]
    assert (given == conds["cross_attn"].float()[0]).all(), "the model isn't called with what the sampler got"
    if "y" in called[0]:
        assert (called[0]["y"].float() == conds["pooled_output"].float()).all(), (
            "the model isn't called with the pooled states that the sampler got"
        )


def gated(encoders: Any, planted: Any, plain: list, rows: dict) -> None:
    """A flagged prompt's own tokens and its special tokens move and no masked state does; one that isn't flagged
    stays as it is."""
    import torch

    how = settings_of(encoders, "gate", 1.0)
    before = as_dict(plain)
    lenient = {
        name: dataclasses.replace(slot, prompt_levels=torch.full_like(slot.prompt_levels, 1e6))
        for name, slot in planted.slots.items()
    }
    unflagged = as_dict(encoders.steer_conditioning(plain, dataclasses.replace(planted, slots=lenient), how))
    flagged = as_dict(encoders.steer_conditioning(plain, planted, how))
    for name, place in planted.places.items():
        if not place.length:
            continue
        old, new = (
            states[place.tensor] if place.layer is None else states[place.tensor][:, place.layer]
            for states in (before, flagged)
        )
        same = unflagged[place.tensor]
        assert torch.equal(same if place.layer is None else same[:, place.layer], old), (
            f"{name}: moved below the threshold"
        )
        moved = (old != new).any(-1)[0]
        masked = (old == 0).all(-1)[0]
        mask = before.get("attention_mask")
        if torch.is_tensor(mask) and place.tensor == "cond" and mask.shape[-1] == len(masked):
            masked |= mask.reshape(-1)[: len(masked)] == 0
        assert not bool((moved & masked).any()), f"{name}: masked states moved"
        assert torch.isfinite(new.float()).all(), f"{name}: not finite"
        content = torch.zeros_like(moved)
        content[rows[name]] = True
        assert bool(moved[content].any()), f"{name}: flagged, and none of its own tokens moved"
        if place.parts == 1:
            varying = planted.slots[name].special_tokens is not None
            # Behind a causal or a bidirectional encoder's prompt at least one state has read it.
            assert varying or not place.after or place.layer == 0, (
                f"{name}: no special tokens that vary, though {place.after} stand behind the prompt"
            )
            assert bool((moved & ~content).any()) == varying, (
                f"{name}: special tokens {'stayed' if varying else 'moved'}"
            )


def in_eight_bits(encoders: Any, planted: Any, how: Any, plain: list, rows: dict) -> None:
    """Conditioning in fp8 comes out in fp8, its own tokens moved and the rest bit-identical."""
    import torch

    coarse = cast(plain, torch.float8_e4m3fn)
    before, after = as_dict(coarse), as_dict(encoders.steer_conditioning(coarse, planted, how))
    for name, place in planted.places.items():
        old, new = before[place.tensor], after[place.tensor]
        assert new.dtype == torch.float8_e4m3fn and torch.isfinite(new.float()).all(), (
            f"{name}: {new.dtype}, or not finite"
        )
        if place.length and place.parts == 1 and place.layer is None:
            moved = (old.float() != new.float()).any(-1)[0]
            content = torch.zeros_like(moved)
            content[rows[name]] = True
            assert bool(moved[content].all()) and not bool(moved[~content].any()), (
                f"{name}: {int(moved.sum())} tokens moved"
            )


def other_prompt(encoders: Any, family: Family, clip: Any, planted: Any, how: Any, prompt: str) -> None:
    """More than one chunk, or weights: the same content by tokens (CLIP) and by states (Apply), as many as the
    tokenizer counts."""
    import torch

    plain = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    by_tokens = encoders.steer_clip(clip, planted, how).encode_from_tokens_scheduled(clip.tokenize(prompt))
    by_states = encoders.steer_conditioning(plain, planted, how)
    for tensor in sorted({p.tensor for p in planted.places.values() if p.length and p.tensor in as_dict(plain)}):
        before = as_dict(plain)[tensor]
        moved = [(as_dict(after)[tensor] != before).any(-1) for after in (by_tokens, by_states)]
        assert torch.equal(*moved), (
            f"{tensor}: {int(moved[0].sum())} tokens by the tokenizer and {int(moved[1].sum())} by the states"
        )
        if "byt5" not in tensor and ":1.4)" not in prompt:  # chat encoders take weights as text
            places = [place for place in planted.places.values() if place.tensor == tensor]
            count = sum(raw_length(clip, place.keys, prompt) for place in places)
            limit = before.shape[-2] * (1 if before.dim() == 3 else before.shape[1])
            # HiDream cuts its T5 at 128 tokens.
            assert int(moved[0].sum()) in (count, min(count, limit - 1)), (
                f"{tensor}: {int(moved[0].sum())} tokens moved, the prompt has {count}"
            )


def textual_inversion(encoders: Any, family: Family, planted: Any, how: Any) -> None:
    """An embedding of three vectors counts as three tokens of the prompt, by tokens and by states."""
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {"emb_params": torch.randn(3, 64, generator=torch.Generator().manual_seed(2)) * 0.5},
            os.path.join(folder, "mine.safetensors"),
        )
        clip = build(family._replace(configs={"clip_l": CLIP}), "float32", folder)
        clip.tokenizer.clip_l.embedding_size = 64
        tokens = clip.tokenize("a portrait of embedding:mine in oil")
        assert sum(torch.is_tensor(token[0]) for token in tokens["l"][0]) == 3
        before = clip.encode_from_tokens_scheduled(tokens)
        for after in (
            encoders.steer_clip(clip, planted, how).encode_from_tokens_scheduled(tokens),
            encoders.steer_conditioning(before, planted, how),
        ):
            moved = (after[0][0] != before[0][0]).any(-1)[0].nonzero().flatten().tolist()
            assert moved == list(range(1, 1 + 3 + 3 + 2)), f"tokens {moved} moved"


# How ComfyUI's loader tells these encoders apart: one key and its shape, of layers that the small ones don't have.
LOADED = {
    "SD1.x": ("clip_l",),
    "SDXL": ("clip_l", "clip_g"),
    "FLUX": ("clip_l", "t5xxl"),
    "SD3": ("clip_l", "clip_g", "t5xxl"),
}
TOLD_BY = {
    "clip_g": ("text_model.encoder.layers.30.mlp.fc1.weight", (1, 1)),
    "t5xxl": ("encoder.block.23.layer.1.DenseReluDense.wi_1.weight", (10240, 1)),
}


def through_the_loader(encoders: Any, name: str, clip: Any, planted: Any) -> None:
    """ComfyUI's own loading of text encoder files gives an encoder that the alignment knows, with the same slots."""
    import comfy.sd
    import torch

    weights = []
    for part in LOADED[name]:
        state = dict(getattr(clip.cond_stage_model, part).transformer.state_dict())
        if part in TOLD_BY:
            key, shape = TOLD_BY[part]
            state[key] = torch.zeros(shape)
        weights.append(state)
    kind = {"FLUX": comfy.sd.CLIPType.FLUX, "SD3": comfy.sd.CLIPType.SD3}.get(name, comfy.sd.CLIPType.STABLE_DIFFUSION)
    options = {f"{part}_model_config": config for part, config in (SMALL | FAMILIES[name].configs).items()}
    options["model_config"] = dict(CLIP)  # for CLIP the loader begins from this one
    with torch.inference_mode(False):
        loaded = comfy.sd.load_text_encoder_state_dicts(
            weights, clip_type=kind, model_options={"dtype": torch.float32, **options}
        )
    encoders.check_encoder(loaded, planted)
    again = encoders.align_encoder(loaded, small_direction(), "svd")
    assert again.places == planted.places


def patched(encoders: Any, clip: Any, planted: Any, how: Any) -> None:
    """Steering survives clone, LoRA and CLIPSetLastLayer in any order, leaves the original alone, and a LoRA is noticed."""
    import torch

    weight = "clip_l.transformer.text_model.encoder.layers.1.mlp.fc2.weight"
    patch = {weight: ("diff", (torch.randn(64, 128, generator=torch.Generator().manual_seed(4)) * 0.2,))}
    tokens = clip.tokenize(PROMPT)
    steer = lambda c: encoders.steer_clip(c, planted, how)

    def lora(c: Any) -> Any:
        c = c.clone()
        c.add_patches(patch)
        return c

    def last(c: Any) -> Any:
        c = c.clone()
        c.clip_layer(-2)
        return c

    def encoded(*steps: Callable) -> Any:
        changed = clip
        for step in steps:
            changed = step(changed)
        return changed.encode_from_tokens_scheduled(tokens)[0][0]

    plain = encoded()
    inner = encoded(lora, last)
    assert not torch.equal(plain, inner)
    for order in ((steer, lora, last), (lora, steer, last), (last, lora, steer), (last, steer, lora)):
        moved = (encoded(*order) - inner)[0, 1 : 1 + raw_length(clip, ("l",), PROMPT)]
        vector = planted.slots["cond"].vectors[0]
        assert torch.nn.functional.cosine_similarity(moved, vector.expand_as(moved), dim=1).min() > 0.99, (
            f"{[step.__name__ for step in order]}"
        )
        assert torch.equal(encoded(), plain), "the original CLIP changed"
    assert torch.equal(encoded(steer), encoded(steer, steer)), "steered twice"
    assert planted.fits(encoders.probe_states(steer(clip), planted)), "a steered CLIP is no longer known"
    assert not planted.fits(encoders.probe_states(lora(clip), planted)), "the LoRA went unnoticed"
    assert not planted.fits(encoders.probe_states(last(clip), planted)), "the other layer went unnoticed"


def main(out: str, only: list[str]) -> None:
    encoders = start_comfyui()
    import comfyui_version

    report: dict[str, Any] = {"comfyui": comfyui_version.__version__, "families": {}}
    for name in only or FAMILIES:
        results: dict[str, str] = {}
        started = time.monotonic()
        try:
            run_family(encoders, name, results)
        except NotHere as error:
            results["not run"] = str(error)
        except Exception as error:
            traceback.print_exc()
            results["built"] = f"fail: {type(error).__name__}: {error}"
        report["families"][name] = results
        bad = {key: value for key, value in results.items() if value != "pass"}
        print(f"{name}: {time.monotonic() - started:.1f} s {bad or 'pass'}", flush=True)
    Path(out).write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
