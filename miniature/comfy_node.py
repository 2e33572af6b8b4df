"""A loader node for tests and the demo. It is no part of the pack: `nodes/` never imports it.

To try it, put a file into ComfyUI's custom_nodes that says `from miniature.comfy_node import comfy_entrypoint`,
with this repository on PYTHONPATH.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import comfy_model


class LoadMiniature(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionsLoadMiniature",
            display_name="Load Miniature Generator",
            category="safety/testing",
            description="A tiny text-to-image model (32x32 emoji scenes) for trying safety steering without a GPU.",
            inputs=[],
            outputs=[io.Model.Output(), io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(comfy_model.load_model(), comfy_model.load_clip(), comfy_model.load_vae())


class MiniatureExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadMiniature]


async def comfy_entrypoint() -> MiniatureExtension:
    return MiniatureExtension()
