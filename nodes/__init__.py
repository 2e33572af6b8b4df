"""The ComfyUI shell: one file per step, thin over `directions`. This one lists the nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .align import AlignSafetyDirection
from .apply import ApplySafetyDirection
from .inspect import InspectConditioning
from .load import LoadSafetyDirection, register_folder
from .small_encoder import LoadSmallTextEncoder


class SafetyDirections(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        register_folder()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadSafetyDirection, AlignSafetyDirection, ApplySafetyDirection, InspectConditioning, LoadSmallTextEncoder]
