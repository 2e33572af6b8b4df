"""Steer every family's real text encoder classes, small and with random weights, at every entry point; writes what passed.

    python -m tests.comfyui.families OUT.json [FAMILY ...] [--OPTION ...]     (tests/comfyui/test_families.py runs it)

Options are ComfyUI's own, --cpu if there is none; --normalvram is a card, and with --gpu-only states stay on it.

A planted direction is added and read back from what the sampler gets: it must be there on the content of every slot (cosine
0.99), and nothing else may have changed by a bit. Where the content begins is written down by hand, per family.
"""

from __future__ import annotations

import atexit
import dataclasses
import gc
import importlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.comfyui.kinds import CLIP, FAMILIES, PROMPT, SMALL, Family, NotHere, build

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "float16", "bfloat16")
ENTRIES = ("Apply", "CLIP", "Guard")


def start_comfyui(options: list[str]) -> Any:
    """Import ComfyUI, with its own command-line options, and the pack; returns the pack's `nodes.encoders`."""
    from harness.environment import find

    environment = find("test")
    sys.path[:0] = [os.fspath(environment.comfyui), *map(os.fspath, environment.pythonpath)]
    base = tempfile.mkdtemp(prefix="safety-directions-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    sys.argv = ["families", *options, "--base-directory", base]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "pack", ROOT / "__init__.py", submodule_search_locations=[os.fspath(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return importlib.import_module("pack.nodes.encoders")


def raw_length(clip: Any, family: Family, keys: tuple[str, ...], prompt: str) -> int:
    """How many tokens the prompt alone is, by the tokenizer itself."""
    if family.count:
        return family.count(clip, prompt)
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
        text = next((text for part, text in family.text.items() if part in name), prompt)
        count = raw_length(clip, family, place.keys, text)
        rows[name] = slice(place.before if start < 0 else start, (place.before if start < 0 else start) + count)
    return rows


def directions_of(encoders: Any, module: str) -> Any:
    """A module of the library that the pack uses."""
    return importlib.import_module(f"{encoders.__name__.removesuffix('.nodes.encoders')}.directions.{module}")


def settings_of(encoders: Any, mode: str, budget: float) -> Any:
    return directions_of(encoders, "steer").SteeringSettings(mode, 1.0, None, budget)


def lenient(planted: Any) -> Any:
    """The alignment with thresholds that nothing exceeds."""
    import torch

    slots = {
        name: dataclasses.replace(slot, anchor_scores=torch.full_like(slot.anchor_scores, 1e6))
        for name, slot in planted.slots.items()
    }
    return dataclasses.replace(planted, slots=slots)


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
    if not family.content:
        results["refused"] = attempt(lambda: refused(encoders, family))
        return
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
                results["past the states"] = attempt(
                    lambda: held_back(encoders, family, clip, model, planted, plain, negative)
                )
                results["fp8 conditioning"] = attempt(lambda: in_eight_bits(encoders, planted, how, plain, rows))
                for title, prompt in (
                    ("long prompt", " ".join([PROMPT.replace('"', "")] * 9)),
                    ("weights", PROMPT.replace("green gate", "(green gate:1.4)")),
                ):
                    results[title] = attempt(lambda: other_prompt(encoders, family, clip, planted, how, prompt))
                results["empty prompt"] = attempt(lambda: empty_prompt(encoders, clip, model, planted, how, plain))
                if "<|im_start|>" in vocabulary(clip):
                    results["a template of its own"] = attempt(lambda: own_template(encoders, clip, planted, how))
                if takes_pictures(clip):
                    results["pictures"] = attempt(lambda: with_pictures(encoders, family, clip, planted, how))
            if dtype == "float32" and name == "SD1.x":
                results["textual inversion"] = attempt(lambda: textual_inversion(encoders, family, planted, how))
                results["LoRA and last layer"] = attempt(lambda: patched(encoders, clip, planted, how))
            if dtype == "float32" and name == "Lens":
                results["another day"] = attempt(lambda: another_day(encoders, clip, planted))
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


def refused(encoders: Any, family: Family) -> None:
    """What gives no states says so, by name and with what to do."""
    try:
        encoders.align_encoder(build(family, "float32"), small_direction(), "svd")
    except encoders.Unsteerable as error:
        assert "text_input_ids" in str(error) and "use another model" in str(error), str(error)
    else:
        raise AssertionError("it was aligned")


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
    unflagged = as_dict(encoders.steer_conditioning(plain, lenient(planted), how))
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


def held_back(encoders: Any, family: Family, clip: Any, model: Any, planted: Any, plain: list, negative: list) -> None:
    """What carries a prompt past its states doesn't carry what lands, wherever it is steered; below the threshold it stays."""
    import torch

    carriers = [(place, carrier) for place in planted.places.values() for carrier in place.past]
    assert tuple(name for _, (name, *_) in carriers) == family.past, f"found {carriers}"
    if not carriers:
        return
    how, before = settings_of(encoders, "gate", 1.0), as_dict(plain)
    calm = as_dict(encoders.steer_conditioning(plain, lenient(planted), how))
    clip_steered = encoders.steer_clip(clip, planted, how)
    shape, guarded = model[1], encoders.guard_model(model[0], planted, how)
    for entry, after in (
        ("Apply", as_dict(encoders.steer_conditioning(plain, planted, how))),
        ("CLIP", as_dict(clip_steered.encode_from_tokens_scheduled(clip.tokenize(PROMPT)))),
        ("Guard", what_is_sampled(guarded, shape, plain, negative)[0]),
    ):
        for place, (name, weigher, _) in carriers:
            same = (
                torch.equal(calm[name], before[name]) if torch.is_tensor(before[name]) else calm[name] == before[name]
            )
            assert same, f"{name}: changed below the threshold"
            if not weigher:
                assert name not in after, f"{entry}: {name} goes past the steering"
                continue
            wanted = same_words(clip, encoders, planted, place, before["cond"], how)
            light = set((after[weigher] == 0).nonzero().flatten().tolist())
            assert wanted and wanted <= light, f"{entry}: the ids {sorted(wanted - light)} of what lands still weigh"
            assert entry != "CLIP" or wanted == light, (
                f"{entry}: {sorted(light - wanted)} weigh nothing and didn't land"
            )
            assert (after[name][sorted(light)] == before[name][-1]).all(), (
                f"{entry}: the ids of what lands are still there"
            )
            others = [i for i in range(len(before[name])) if i not in light]
            assert torch.equal(after[name][others], before[name][others]), f"{entry}: other ids changed"


def same_words(clip: Any, encoders: Any, planted: Any, place: Any, states: Any, how: Any) -> set[int]:
    """The T5 tokens that hold the text of Anima's states that land, by where they stand in the prompt."""
    own, other = clip.tokenizer.qwen3_06b.tokenizer, clip.tokenizer.t5xxl.tokenizer
    ends = [len(own.decode(own(PROMPT)["input_ids"][: i + 1])) for i in range(states.shape[1])]
    landed = directions_of(encoders, "steer").move(planted.slots[place.name], states, how).landed[0]
    spans = [(start, stop) for start, stop, lands in zip([0, *ends], ends, landed.tolist()) if lands]
    ids = other(PROMPT, return_offsets_mapping=True)
    letters = [{i for i in range(a, b) if not PROMPT[i].isspace()} for a, b in spans]
    return {
        j
        for j, (a, b) in enumerate(ids["offset_mapping"])
        if other.decode(ids["input_ids"][j]).strip() and any(own & set(range(a, b)) for own in letters)
    }


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
            count = sum(raw_length(clip, family, place.keys, prompt) for place in places)
            limit = before.shape[-2] * (1 if before.dim() == 3 else before.shape[1])
            # HiDream cuts its T5 at 128 tokens.
            assert int(moved[0].sum()) in (count, min(count, limit - 1)), (
                f"{tensor}: {int(moved[0].sum())} tokens moved, the prompt has {count}"
            )


def empty_prompt(encoders: Any, clip: Any, model: Any, planted: Any, how: Any, plain: list) -> None:
    """A prompt of no words passes wherever it is steered, also as the negative one."""
    empty = clip.encode_from_tokens_scheduled(clip.tokenize(""))
    steered = encoders.steer_clip(clip, planted, how).encode_from_tokens_scheduled(clip.tokenize(""))
    for after in (steered, encoders.steer_conditioning(empty, planted, how)):
        assert after[0][0].shape == empty[0][0].shape
    if empty[0][0].shape[1]:
        what_is_sampled(encoders.guard_model(model[0], planted, how, "both"), model[1], plain, empty)


def vocabulary(clip: Any) -> set[str]:
    """The texts that a CLIP's tokenizers know."""
    parts = (part for part in vars(clip.tokenizer).values() if hasattr(part, "inv_vocab"))
    return {text for part in parts for text in part.inv_vocab.values()}


def changed_by(clip: Any, steered: Any, one: str, other: str, **pictures: Any) -> tuple[int, list[int]]:
    """The first state that tells two prompts apart, and those that steering moves in the first prompt."""
    before, after, others = (
        c.encode_from_tokens_scheduled(clip.tokenize(text, **pictures))[0][0][0]
        for c, text in ((clip, one), (steered, one), (clip, other))
    )
    first = int(((before - others).abs().amax(-1) > 1e-5).nonzero()[0])
    return first, (before != after).any(-1).nonzero().flatten().tolist()


def own_template(encoders: Any, clip: Any, planted: Any, how: Any) -> None:
    """Words in a chat template that the prompt brings along are moved, from the first to the last."""
    steered = encoders.steer_clip(clip, planted, how)
    wrap = (SYSTEM + "red {} blue<|im_end|>\n").format
    for other in (wrap("fox").replace("red", "old"), wrap("cow"), wrap("fox").replace("blue", "old")):
        first, moved = changed_by(clip, steered, wrap("fox"), other)
        assert first in moved, f"state {first} is the prompt's and only {moved} moved"


SYSTEM = f"<|im_start|>system\n{'Look at it, and see what is there. ' * 5}<|im_end|>\n<|im_start|>user\n"
"""As long as what JoyImage drops, whatever stands there."""

PICTURE_PATCH = 28
"""Pixels along a side of what the stand-in below makes one state of."""


def takes_pictures(clip: Any) -> bool:
    """Whether a prompt can have pictures in it; what reads them is then replaced by noise of their size."""
    import torch

    transformer = next(
        (getattr(m, "transformer", None) for m in clip.cond_stage_model.children() if hasattr(m, "transformer")), None
    )
    try:
        tokens = clip.tokenize("a", images=[torch.zeros(1, 56, 56, 3)])
    except Exception:
        return False
    if not any(
        isinstance(t[0], dict) for rows in tokens.values() if isinstance(rows, list) for row in rows for t in row
    ):
        return False

    def look(embed: Any, device: Any) -> tuple[Any, Any]:
        _, height, width, _ = embed["data"].shape
        rows, columns = height // PICTURE_PATCH, width // PICTURE_PATCH
        noise = torch.randn(rows * columns, 64, generator=torch.Generator().manual_seed(height + width))
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        return noise, {"grid": grid, "deepstack": []} if hasattr(transformer, "build_image_inputs") else grid

    transformer.preprocess_embed = look
    return True


def with_pictures(encoders: Any, family: Family, clip: Any, planted: Any, how: Any) -> None:
    """The prompt is moved, whether it stands behind one picture or several, or in a template of its own before one."""
    import torch

    steered = encoders.steer_clip(clip, planted, how)
    small, large = torch.rand(1, 56, 84, 3), torch.rand(1, 112, 140, 3)
    block = "<|vision_start|><|image_pad|><|vision_end|>"
    for pictures in ([small], [large], [small, large]):
        words = PROMPT.split()
        first, moved = changed_by(clip, steered, PROMPT, " ".join(["one", *words[1:]]), images=pictures)
        last, _ = changed_by(clip, steered, PROMPT, " ".join([*words[:-1], "sits"]), images=pictures)
        assert set(range(first, last + 1)) <= set(moved), (
            f"{len(pictures)}: {first} to {last} are the prompt's, {moved} moved"
        )
        more = len(moved) - (last + 1 - first)
        assert more <= 8 * (len(pictures) - 1), f"{len(pictures)}: {more} states moved besides the prompt's"
    if "<|im_start|>" not in vocabulary(clip):
        return
    wrap = SYSTEM + f"red fox {block} cow blue {block} sea<|im_end|>\n"
    for word in ("red", "fox", "cow", "blue", "sea"):
        first, moved = changed_by(clip, steered, wrap, wrap.replace(word, "old"), images=[small, large])
        assert first in moved, f"state {first} ({word}) is the prompt's and only {moved} moved"


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


def another_day(encoders: Any, clip: Any, planted: Any) -> None:
    """A template with a date in it is another one tomorrow: the kept alignment is found all the same, and fits."""
    import comfy.text_encoders.gpt_oss as gpt_oss

    first, today = encoders.align_encoder(clip, small_direction(), "svd"), gpt_oss._LENS_CHAT_DATE
    encode = clip.encode_from_tokens
    try:
        gpt_oss._LENS_CHAT_DATE = "2031-11-08"
        assert planted.fits(encoders.probe_states(clip, planted)), "the alignment doesn't know the encoder on another day"
        clip.encode_from_tokens = None  # whoever calls it now fails
        again = encoders.align_encoder(clip, small_direction(), "svd")
        assert again.places == first.places and (again.slots["cond"].vectors == first.slots["cond"].vectors).all()
    finally:
        gpt_oss._LENS_CHAT_DATE, clip.encode_from_tokens = today, encode


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
        moved = (encoded(*order) - inner)[0, 1 : 1 + raw_length(clip, FAMILIES["SD1.x"], ("l",), PROMPT)]
        vector = planted.slots["cond"].vectors[0].to(moved)
        assert torch.nn.functional.cosine_similarity(moved, vector.expand_as(moved), dim=1).min() > 0.99, (
            f"{[step.__name__ for step in order]}"
        )
        assert torch.equal(encoded(), plain), "the original CLIP changed"
    assert torch.equal(encoded(steer), encoded(steer, steer)), "steered twice"
    assert planted.fits(encoders.probe_states(steer(clip), planted)), "a steered CLIP is no longer known"
    assert not planted.fits(encoders.probe_states(lora(clip), planted)), "the LoRA went unnoticed"
    assert not planted.fits(encoders.probe_states(last(clip), planted)), "the other layer went unnoticed"


def main(out: str, arguments: list[str]) -> None:
    only = [name for name in arguments if not name.startswith("--")]
    encoders = start_comfyui([name for name in arguments if name.startswith("--")] or ["--cpu"])
    import comfy.model_management
    import comfyui_version

    device = str(comfy.model_management.text_encoder_device())
    report: dict[str, Any] = {"comfyui": comfyui_version.__version__, "device": device, "families": {}}
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
