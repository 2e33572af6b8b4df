"""A MODEL that steers whatever conditioning reaches its sampler, once."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Mapping

import comfy.hooks
import comfy.model_patcher
import comfy.patcher_extension

from ...directions.alignment import Alignment
from ...directions.steer import SteeringSettings
from .entry import Entry
from .flag import Refused, act_on
from .marks import carried, carrying, marks, sha_of
from .picture_notes import note
from .steering import Steering

GUARD = "Safety Direction Guard"


def guard_model(
    model: Any,
    aligned: Alignment | None,
    settings: SteeringSettings,
    side: str = "positive",
    on_flag: str = "steer",
    strict: bool = False,
    node: str = GUARD,
) -> Any:
    """A clone of a MODEL that steers the conditioning of every sampling run.

    Args:
        aligned: for conditioning that carries no alignment of its own (see `Mark`).
        side: "positive" (and the negative side below cfg 1, where it is what gets generated) or "both".
        strict: let only conditioning pass that was steered with these very settings, and steer the negative side too where
            other code than ComfyUI's own formula weighs it.
        node: its name, for messages.
    """

    def sample(executor: Any, *args, **kwargs) -> Any:
        guider = executor.class_obj
        guarded = side == "both" or not lowest_cfg(guider) >= 1
        weighed = strict and weighs_otherwise(guider)
        for name, conds in guider.conds.items():
            avoided = name == "negative" and not guarded  # PerpNegGuider's "empty_negative_prompt" is drawn towards
            act = _give_back if avoided and not weighed else _guard_entry
            # What may be meant as a negative prompt is steered, but no reason to refuse.
            flag = "steer" if avoided else on_flag
            steered = [act(as_entry(cond), aligned, settings, flag, strict, node) for cond in conds]
            guider.conds[name] = [as_cond(entry) for entry in steered]
            if not avoided:
                for record in (record for entry in steered for record in marks(entry)[:1]):
                    note(node, record)
        return executor(*args, **kwargs)

    key = "safety_direction" + (".strict" if strict else "")
    guarded_model = model.clone()
    guarded_model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, key)
    guarded_model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, key, sample)
    return guarded_model


def lowest_cfg(guider: Any) -> float:
    """The lowest of a guider's scales; below 1 the negative side is generated rather than avoided."""
    return min(getattr(guider, name, 1.0) for name in ("cfg", "cfg1", "cfg2"))


def weighs_otherwise(guider: Any) -> bool:
    """Whether a model patch or a guider from another pack has a say in how much the negative side counts.

    Some of ComfyUI's own patches can turn it into what is generated: CFGOverride, VideoLinearCFGGuidance, FreSca,
    LatentApplyOperationCFG, NAGuidance. So only what is known to have no say in it passes.
    """
    comfyui = Path(comfy.patcher_extension.__file__).resolve().parents[1]
    home = Path(inspect.getfile(type(guider))).resolve()
    if not any(home.is_relative_to(comfyui / folder) for folder in ("comfy", "comfy_extras")):
        return True
    models = [part for part in vars(guider).values() if isinstance(part, comfy.model_patcher.ModelPatcher)]
    hooks = (hook for conds in guider.original_conds.values() for cond in conds for hook in _hooks(cond))
    return (
        _options_weigh(guider.model_options)
        or any(_model_weighs(model) for model in models)
        or any(not isinstance(hook, comfy.hooks.WeightHook) for hook in hooks)
    )


_WEIGHING = ("PREDICT_NOISE", "CALC_COND_BATCH", "APPLY_MODEL", "DIFFUSION_MODEL", "SAMPLER_SAMPLE")
"""Wrappers around what turns the sides into noise."""

_HARMLESS = {"model_sampling", "manual_cast_dtype", "latent_format"}
"""Parts of a model that may be replaced: they treat both sides alike."""


def _model_weighs(model: Any) -> bool:
    # Its wrappers come into the options later, when the model is loaded.
    wrapped = any(model.wrappers.get(getattr(comfy.patcher_extension.WrappersMP, kind)) for kind in _WEIGHING)
    return wrapped or _options_weigh(model.model_options) or not set(model.object_patches) <= _HARMLESS


def _options_weigh(options: Mapping[str, Any]) -> bool:
    transformer = options.get("transformer_options", {})
    kinds = (getattr(comfy.patcher_extension.WrappersMP, kind) for kind in _WEIGHING)
    wrapped = any(comfy.patcher_extension.get_all_wrappers(kind, options, is_model_options=True) for kind in kinds)
    named = any(options[key] for key in options if key.startswith("sampler_"))
    patched = any(transformer.get(name) for name in ("patches", "patches_replace", "optimized_attention_override"))
    asked = any(options.get(name) for name in ("model_function_wrapper", "disable_cfg1_optimization"))
    return wrapped or named or patched or asked


def _hooks(cond: Mapping[str, Any]) -> list[Any]:
    return list(getattr(cond.get("hooks"), "hooks", ()))


# A guider keeps the states inside the dict.
def as_entry(cond: Mapping[str, Any]) -> Entry:
    return cond.get("cross_attn"), cond


def as_cond(entry: Entry) -> Mapping[str, Any]:
    return entry[1] if entry[0] is None else {**entry[1], "cross_attn": entry[0]}


def _guard_entry(
    entry: Entry, aligned: Alignment | None, settings: SteeringSettings, on_flag: str, strict: bool, node: str
) -> Entry:
    carried_marks = carried(entry)
    fitted = carried_marks[-1].aligned if carried_marks else aligned
    if fitted is None:
        raise ValueError(
            f"{node}: a conditioning that reaches the sampler carries no alignment. Connect a CLIP to Safety Direction "
            "(or Align Safety Direction to the Guard), or encode the prompts with a CLIP that steers. "
            "(A model that takes no text can't be guarded.)"
        )
    for mark in carried_marks:  # also where the states have changed since
        act_on(mark.flag, node, on_flag, settings.mode)
    if any(
        sha_of(mark.aligned) == sha_of(fitted) and (mark.settings == settings or not strict) for mark in marks(entry)
    ):
        return entry
    try:
        return Steering(node, fitted, settings, on_flag)(entry)
    except Refused:
        raise
    except ValueError as error:
        raise type(error)(f"{node}: {error}") from None


def _give_back(entry: Entry, *_: Any) -> Entry:
    """A negative prompt as it was encoded: steered by a CLIP it would have lost its force."""
    for mark in marks(entry):
        if mark.give_back:
            cond, extras = mark.before
            return cond, {
                **entry[1],
                **{name: extras[name] for name in carrying(mark.aligned) if name in extras},
            }
    return entry
