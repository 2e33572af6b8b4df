"""Safety Direction: load, align, steer and guard in one node, wired like a LoRA loader."""

from __future__ import annotations

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from . import encoders, settings
from .align import SECONDS, unread
from .host import in_force
from .load import LoadSafetyDirection, direction_input, load_by_name
from .sockets import CATEGORY, Aligned

NAME = "Safety Direction"


class SafetyDirection(io.ComfyNode):
    """The CLIP steers what it encodes, and the MODEL whatever reaches its sampler; both by one alignment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirection",
            display_name=NAME,
            category=CATEGORY,
            description="Makes a model safe: put it behind the checkpoint or the last LoRA, where both go on through it. "
            "It fits itself to the text encoder, once, and steers what is encoded and what is sampled.",
            search_aliases=["nsfw", "safe", "safety", "censor", "safety filter", "safety checker", "concept slider"],
            inputs=[
                io.Model.Input("model", optional=True, tooltip="The diffusion model that the sampler will use."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder that your prompts go through."),
                direction_input(),
                *settings.steering_inputs(),
                settings.on_flag_input(),
            ],
            outputs=[
                io.Model.Output(tooltip="Steers what reaches a sampler through it."),
                io.Clip.Output(tooltip="Steers whatever is encoded with it."),
                Aligned.Output(display_name="aligned", tooltip="For Inspect, Strength Sweep and Save Aligned Direction."),
            ],
        )

    @classmethod
    def validate_inputs(cls, direction: str) -> bool | str:
        return LoadSafetyDirection.validate_inputs(direction)

    @classmethod
    def fingerprint_inputs(cls, direction: str, **_) -> str:
        return LoadSafetyDirection.fingerprint_inputs(direction)

    @classmethod
    def execute(
        cls, direction, mode, alpha, budget, categories, model=None, clip=None, on_flag="steer"
    ) -> io.NodeOutput:
        if model is None and clip is None:
            raise ValueError("nothing is connected: connect a MODEL, a CLIP, or best both")
        how = settings.steering_settings(mode, alpha, budget, categories)
        aligned = None if clip is None else encoders.align_encoder(clip, load_by_name(direction), "auto", SECONDS)
        if in_force():  # the host steers
            return io.NodeOutput(model or _missing("MODEL"), clip or _missing("CLIP"), aligned or _missing("CLIP"))
        # With a MODEL its guard refuses, which knows a negative prompt from a positive one; a CLIP doesn't.
        on_clip = on_flag if model is None else "steer"
        return io.NodeOutput(
            _missing("MODEL") if model is None else encoders.guard_model(model, aligned, how, on_flag=on_flag, node=NAME),
            _missing("CLIP") if aligned is None else encoders.steer_clip(clip, aligned, how, on_clip, NAME),
            _missing("CLIP") if aligned is None else aligned,
            ui=None if aligned is None else unread(aligned),
        )


def _missing(socket: str) -> ExecutionBlocker:
    """Stops the nodes behind an output that can't be given, with a message; others run."""
    return ExecutionBlocker(f"{NAME}: for this, connect its {socket} input")
