"""Safety Direction Guard."""

from __future__ import annotations

from comfy_api.latest import io

from . import encoders, settings
from .host import in_force
from .sockets import CATEGORY, Aligned


class SafetyDirectionGuard(io.ComfyNode):
    """Steers whatever conditioning reaches the sampler, once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionGuard",
            display_name="Safety Direction Guard",
            category=CATEGORY,
            description="Steers whatever reaches the sampler through this model; what this direction already steered "
            "passes as it is.",
            search_aliases=["nsfw", "safe", "censor", "safety filter", "concept slider", "safety checker"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion model that the sampler will use."),
                *settings.steering_inputs(),
                Aligned.Input(
                    "aligned",
                    optional=True,
                    tooltip="For conditioning that carries none: not encoded with a Safety Direction CLIP.",
                ),
                io.Combo.Input(
                    "side",
                    options=["positive", "both"],
                    default="positive",
                    optional=True,
                    extra_dict=settings.ADVANCED,
                    tooltip="positive: a negative prompt keeps its force (below cfg 1, where it is what gets "
                    "generated, it is steered too). both: always both.",
                ),
                settings.on_flag_input(),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    optional=True,
                    extra_dict=settings.ADVANCED,
                    tooltip="Lets only conditioning pass that was steered with these very settings. For hosts; off, "
                    "any settings of the same direction will do.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="Steers what reaches a sampler through it.")],
        )

    @classmethod
    def execute(
        cls, model, mode, alpha, budget, categories, aligned=None, side="positive", on_flag="steer", strict=False
    ) -> io.NodeOutput:
        if in_force():
            return io.NodeOutput(model)
        how = settings.steering_settings(mode, alpha, budget, categories)
        return io.NodeOutput(encoders.guard_model(model, aligned, how, side, on_flag, strict))
