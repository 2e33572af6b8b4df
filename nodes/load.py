"""Load Safety Direction."""

from __future__ import annotations

import os

import folder_paths
from comfy_api.latest import io

from ..directions.direction import Direction as DirectionFile
from ..directions.direction import available, load
from .sockets import CATEGORY, Direction

FOLDER = "safety_directions"


def register_folder() -> None:
    """Make models/safety_directions known to ComfyUI."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER), is_default=True)


def folders() -> list[str]:
    """Where directions lie beside the pack's library; the first is models/safety_directions."""
    return folder_paths.get_folder_paths(FOLDER) if FOLDER in folder_paths.folder_names_and_paths else []


def load_by_name(name: str) -> DirectionFile:
    """A direction of the library or of models/safety_directions.

    Raises:
        ValueError: there is none of that name; a graph can send any text, and only listed names are opened.
        DirectionFormatError: what is wrong with the file, and where.
    """
    if name not in available(folders()):
        raise ValueError(f"there is no direction {name!r} in the library or in models/{FOLDER}")
    return load(name, folders())


def direction_input() -> io.Input:
    """The picker; the page shows the chosen file's facts below it."""
    return io.Combo.Input(
        "direction",
        options=list(available(folders())),
        tooltip="A file from the pack's library or from models/safety_directions.",
    )


class LoadSafetyDirection(io.ComfyNode):
    """A direction file, by name, from the pack's library or models/safety_directions."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionLoad",
            display_name="Load Safety Direction",
            category=CATEGORY,
            description="Loads a safety direction: what a language model learned about safe and unsafe prompts.",
            search_aliases=["nsfw", "safe", "censor", "safety filter", "concept slider"],
            inputs=[direction_input()],
            outputs=[Direction.Output(display_name="direction", tooltip="For Align Safety Direction.")],
        )

    @classmethod
    def validate_inputs(cls, direction: str) -> bool | str:
        if direction not in available(folders()):
            return f"there is no direction {direction!r} in the library or in models/{FOLDER}"
        return True

    @classmethod
    def fingerprint_inputs(cls, direction: str) -> str:
        path = available(folders()).get(direction)
        return f"{path}:{path.stat().st_mtime_ns}" if path else direction

    @classmethod
    def execute(cls, direction: str) -> io.NodeOutput:
        return io.NodeOutput(load_by_name(direction))
