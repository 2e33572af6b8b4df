"""Apply Safety Direction."""

from __future__ import annotations

from comfy_api.latest import io

from . import encoders, settings
from .host import in_force
from .sockets import CATEGORY, Aligned


class ApplySafetyDirection(io.ComfyNode):
    """Steers conditioning to the safe side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionApply",
            display_name="Apply Safety Direction",
            category=CATEGORY,
            description="Moves conditioning to the safe side. In gate mode a harmless prompt comes out untouched.",
            search_aliases=["nsfw", "safe", "censor", "safety filter", "concept slider"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", tooltip="The prompt, as a text encode node gives it. Not a negative prompt."
                ),
                Aligned.Input("aligned", tooltip="The direction, aligned to the CLIP that encodes the prompt."),
                *settings.steering_inputs(),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    extra_dict=settings.ADVANCED,
                    tooltip="Sampling progress (0 to 1) at which steering begins.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    extra_dict=settings.ADVANCED,
                    tooltip="Sampling progress (0 to 1) at which steering ends.",
                ),
                settings.on_flag_input(),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="Steered; a harmless prompt comes out as it was in gate mode."
                ),
                io.Boolean.Output(display_name="flagged", tooltip="Whether the score is over the budget's threshold."),
                io.Float.Output(
                    display_name="score",
                    tooltip="Of the whole prompt, in benign standard deviations; higher is more unsafe.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, conditioning, aligned, mode, alpha, budget, categories, start_percent, end_percent, on_flag="steer"
    ) -> io.NodeOutput:
        if in_force():
            return io.NodeOutput(conditioning)
        how = settings.steering_settings(mode, alpha, budget, categories)
        # For the badge in the page.
        shown = {
            "safety_direction": ({"state": "double" if encoders.is_steered(conditioning, aligned) else "aligned"},)
        }
        steered = encoders.steer_conditioning(conditioning, aligned, how, start_percent, end_percent, on_flag)
        now, before = encoders.inspect_conditioning(conditioning, aligned, budget) if conditioning else (None, None)
        reading = before or now
        flagged = encoders.flag_of(steered, aligned) is not None
        return io.NodeOutput(steered, flagged, reading.score if reading else 0.0, ui=shown)
