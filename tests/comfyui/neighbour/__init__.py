"""A pack beside ours that owns the name `directions` on the import path, and tells what modules were loaded from where."""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(__file__))

import directions  # noqa: F401, I001  (its own)
from comfy_api.latest import ComfyExtension, io, ui


class ModulesOf(io.ComfyNode):
    """The names of the modules that were loaded from a pack's folder, as JSON."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ModulesOf", category="testing", inputs=[io.String.Input("folder")], is_output_node=True
        )

    @classmethod
    def execute(cls, folder) -> io.NodeOutput:
        names = [
            name for name, module in list(sys.modules.items()) if folder in (getattr(module, "__file__", None) or "")
        ]
        return io.NodeOutput(ui=ui.PreviewText(json.dumps(names)))


class Neighbour(ComfyExtension):
    async def get_node_list(self):
        return [ModulesOf]


async def comfy_entrypoint():
    return Neighbour()
