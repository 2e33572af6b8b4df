"""Inspect Conditioning."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from . import encoders
from .heatmap import draw
from .sockets import CATEGORY, Aligned


class InspectConditioning(io.ComfyNode):
    """How unsafe each token looks, as a picture, a number and a verdict."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionInspect",
            display_name="Inspect Conditioning",
            category=CATEGORY,
            description="Shows how unsafe each token of a conditioning scores, and whether the prompt is flagged.",
            search_aliases=["nsfw", "safe", "heat map", "safety"],
            inputs=[
                io.Conditioning.Input("conditioning"),
                Aligned.Input("aligned"),
                io.Float.Input(
                    "budget",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Share of harmless prompts that may be flagged by mistake: 0.01 is 1%.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="With the prompt: writes the words over the tokens."),
                io.String.Input("prompt", optional=True, default="", multiline=True, tooltip="The text that was encoded, to name the tokens."),
            ],
            outputs=[
                io.Image.Output(display_name="heat map"),
                io.Float.Output(display_name="score"),
                io.Boolean.Output(display_name="flagged"),
                io.String.Output(display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning, aligned, budget, clip=None, prompt="") -> io.NodeOutput:
        reading = encoders.inspect_conditioning(conditioning, aligned, budget)
        labels = encoders.token_labels(clip, prompt, len(reading.tokens)) if clip is not None and prompt else None
        picture = draw(reading, labels)
        image = torch.from_numpy(picture).float().div(255).unsqueeze(0)
        text = reading.text()
        return io.NodeOutput(image, reading.score, reading.flagged, text, ui=ui.PreviewText(text))
