"""Apply Safety Direction."""

from __future__ import annotations

from comfy_api.latest import io

from ..directions.steer import MODES
from . import encoders
from .sockets import CATEGORY, Aligned


def parse_categories(text: str) -> list[str] | None:
    """Names separated by commas; None when there are none (all, through the global direction)."""
    return [part.strip() for part in text.split(",") if part.strip()] or None


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
                io.Conditioning.Input("conditioning"),
                Aligned.Input("aligned"),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default="gate",
                    tooltip="gate: only prompts over the budget's threshold, landing among harmless states. "
                    "add: every prompt, as in the paper. project: one-sided, to the harmless level.",
                ),
                io.Float.Input(
                    "alpha",
                    default=5.0,
                    min=-20.0,
                    max=20.0,
                    step=0.1,
                    tooltip="Strength in benign spreads (standard deviations of harmless prompts). 1 to 7 is usual; 0 is off.",
                ),
                io.Float.Input(
                    "budget",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Share of harmless prompts that may be steered by mistake: 0.01 is 1%. A smaller one flags less.",
                ),
                io.String.Input(
                    "categories",
                    default="",
                    tooltip="Empty: everything the direction knows. Or some of its categories, with commas: violence, sexual.",
                ),
                io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip="Sampling progress (0 to 1) at which steering begins."),
                io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip="Sampling progress (0 to 1) at which steering ends."),
            ],
            outputs=[io.Conditioning.Output(display_name="conditioning")],
        )

    @classmethod
    def execute(cls, conditioning, aligned, mode, alpha, budget, categories, start_percent, end_percent) -> io.NodeOutput:
        how = {"alpha": alpha, "mode": mode, "categories": parse_categories(categories), "budget": budget}
        return io.NodeOutput(encoders.steer_conditioning(conditioning, aligned, how, start_percent, end_percent))
