"""Safety Direction CLIP."""

from __future__ import annotations

from comfy_api.latest import io

from . import encoders, settings
from .host import in_force
from .sockets import CATEGORY, Aligned


class SafetyDirectionCLIP(io.ComfyNode):
    """Steers every prompt that the CLIP encodes from here on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionCLIP",
            display_name="Safety Direction CLIP",
            category=CATEGORY,
            description="Steers every prompt encoded with this CLIP, whatever node encodes it. Also a negative "
            "prompt; see the help.",
            search_aliases=["nsfw", "safe", "censor", "safety filter", "concept slider", "text encoder"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder, behind its LoRAs; the very one that was aligned."),
                Aligned.Input("aligned", tooltip="The direction, aligned to the CLIP that encodes the prompt."),
                *settings.steering_inputs(),
                settings.on_flag_input(),
            ],
            outputs=[io.Clip.Output(tooltip="Steers whatever is encoded with it.")],
        )

    @classmethod
    def execute(cls, clip, aligned, mode, alpha, budget, categories, on_flag="steer") -> io.NodeOutput:
        if in_force():
            return io.NodeOutput(clip)
        encoders.check_encoder(clip, aligned)
        return io.NodeOutput(
            encoders.steer_clip(clip, aligned, settings.steering_settings(mode, alpha, budget, categories), on_flag)
        )
