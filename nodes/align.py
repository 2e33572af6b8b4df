"""Align Safety Direction."""

from __future__ import annotations

from comfy_api.latest import io, ui

from ..directions.align import METHODS
from ..directions.alignment import Alignment
from . import encoders
from .settings import ADVANCED
from .sockets import CATEGORY, Aligned, Direction

SECONDS = 60.0
"""How long aligning may take, about, if nobody says otherwise."""


class AlignSafetyDirection(io.ComfyNode):
    """Fits a direction to the loaded text encoder, from benign prompts only; once per encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionAlign",
            display_name="Align Safety Direction",
            category=CATEGORY,
            description="Fits the direction to the text encoder that is loaded. It encodes a few thousand harmless "
            "prompts, once; the result is kept on disk.",
            search_aliases=["nsfw", "safe", "safety", "concept slider"],
            inputs=[
                Direction.Input("direction", tooltip="What Load Safety Direction gives."),
                io.Clip.Input("clip", tooltip="The text encoder that your prompts go through."),
                io.Combo.Input(
                    "method",
                    options=["auto", *METHODS],
                    default="auto",
                    tooltip="How the two spaces are matched. auto: whichever fits held-out harmless prompts best.",
                ),
                io.Float.Input(
                    "seconds",
                    default=SECONDS,
                    min=0.0,
                    max=36000.0,
                    step=1.0,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="How long aligning may take, about, the first time: as many of the harmless prompts are read as "
                    "fit into it. 0 reads all of them, however long it takes.",
                ),
            ],
            outputs=[Aligned.Output(display_name="aligned", tooltip="For Apply, CLIP, Guard, Inspect and Sweep.")],
        )

    @classmethod
    def execute(cls, direction, clip, method: str, seconds: float = SECONDS) -> io.NodeOutput:
        aligned = encoders.align_encoder(clip, direction, method, seconds or None)
        return io.NodeOutput(aligned, ui=unread(aligned))


def unread(aligned: Alignment) -> ui.PreviewText | None:
    """What a node shows about the languages that its text encoder doesn't read."""
    if not aligned.unread_languages:
        return None
    return ui.PreviewText(
        f"This text encoder doesn't read {', '.join(aligned.unread_languages)}: "
        "in prompts of these languages nothing unsafe is found."
    )
