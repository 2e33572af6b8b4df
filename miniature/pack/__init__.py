"""A node pack for the demo, the tests and the benchmarks: the miniature as a MODEL. It is no part of the published pack.

Its encoder is all-MiniLM-L6-v2, which the node Load Small Text Encoder gives as a CLIP.
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
            inputs=[],
            outputs=[io.Model.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from miniature import comfy_model

        return io.NodeOutput(comfy_model.load_model(), comfy_model.load_vae())


class Miniature(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadMiniature]


async def comfy_entrypoint() -> Miniature:
    return Miniature()
