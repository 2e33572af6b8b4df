"""The ComfyUI shell: one file per step, thin over `directions`. This one lists the nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .align import AlignSafetyDirection
from .apply import ApplySafetyDirection
from .clip import SafetyDirectionCLIP
from .estimate import EstimateSafetyDirection, register_sources
from .guard import SafetyDirectionGuard
from .host import register as register_host
from .inspect import InspectConditioning
from .judge import JudgeImages, judge_by_name
from .load import LoadSafetyDirection, load_by_name, register_folder
from .page import add_routes, keep_metadata
from .refusal import SafetyDirectionRefusal
from .safety_direction import SafetyDirection
from .share import LoadAlignedDirection, SaveAlignedDirection
from .small_encoder import LoadSmallTextEncoder
from .sweep import LabelGrid, StrengthSweep
from .type_direction import TypeDirection


class SafetyDirections(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        register_folder()
        register_sources()
        add_routes()
        keep_metadata()
        register_host(load_by_name, judge_by_name)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            SafetyDirection,
            LoadSafetyDirection,
            AlignSafetyDirection,
            ApplySafetyDirection,
            SafetyDirectionCLIP,
            SafetyDirectionGuard,
            InspectConditioning,
            StrengthSweep,
            LabelGrid,
            EstimateSafetyDirection,
            SaveAlignedDirection,
            LoadAlignedDirection,
            JudgeImages,
            LoadSmallTextEncoder,
            SafetyDirectionRefusal,
            TypeDirection,
        ]
