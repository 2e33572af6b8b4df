"""Save and Load Aligned Direction: an alignment for a common encoder, as a file to share."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..directions.alignment import load_aligned_encoder
from ..directions.direction_format import is_name
from . import encoders
from .host import refuse_to_write
from .load import FOLDER, folders
from .sockets import CATEGORY, Aligned


def aligned_files() -> dict[str, Path]:
    """The alignments in models/safety_directions/aligned, by name."""
    found: dict[str, Path] = {}
    for folder in folders():
        for path in sorted((Path(folder) / encoders.SHARED).glob("*.safetensors")):
            found.setdefault(path.stem, path)
    return found


class SaveAlignedDirection(io.ComfyNode):
    """Writes an alignment to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionSaveAligned",
            display_name="Save Aligned Direction",
            category=CATEGORY,
            description="Saves an alignment in models/safety_directions/aligned, to share with those who use the same "
            "text encoder.",
            search_aliases=["safe", "safety", "share"],
            inputs=[
                Aligned.Input("aligned", tooltip="What Align Safety Direction gives."),
                io.String.Input(
                    "name",
                    default="my-encoder",
                    tooltip="The file's name: small letters, digits, - and _; at most 64. Name the direction and the encoder.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Whether a file of that name is replaced. Off, the node stops at one that differs.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, name, **others) -> float:
        """Without its file the node always runs: NaN is not even what it was."""
        path = aligned_files().get(name)
        return path.stat().st_mtime if path else float("nan")

    @classmethod
    def execute(cls, aligned, name, overwrite) -> io.NodeOutput:
        refuse_to_write()
        if not is_name(name):
            raise ValueError(f"the name {name!r} should be small letters, digits, - and _; at most 64")
        path = Path(folders()[0]) / encoders.SHARED / f"{name}.safetensors"
        if path.exists() and not overwrite:
            there = load_aligned_encoder(path)
            if there.direction.get("sha256") != aligned.direction.get("sha256") or not there.fits(aligned.probes):
                raise ValueError(
                    f"{encoders.SHARED}/{path.name} is there already, for another encoder or direction: choose another "
                    f"name, or switch overwrite on"
                )
        aligned.save(path)
        return io.NodeOutput(ui={"text": (f"models/{FOLDER}/{encoders.SHARED}/{path.name}",)})


class LoadAlignedDirection(io.ComfyNode):
    """Reads an alignment from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionLoadAligned",
            display_name="Load Aligned Direction",
            category=CATEGORY,
            description="Loads an alignment that somebody made for the same text encoder: nothing has to be aligned.",
            search_aliases=["nsfw", "safe", "safety", "share"],
            inputs=[
                io.Combo.Input(
                    "name", options=list(aligned_files()), tooltip="A file in models/safety_directions/aligned."
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that it is for: the node stops if it is another one.",
                ),
            ],
            outputs=[Aligned.Output(display_name="aligned", tooltip="For Apply, CLIP, Guard, Inspect and Sweep.")],
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        return name in aligned_files() or f"there is no alignment {name!r} in models/{FOLDER}/{encoders.SHARED}"

    @classmethod
    def fingerprint_inputs(cls, name: str, clip=None) -> str:
        path = aligned_files().get(name)
        return f"{path}:{path.stat().st_mtime_ns}" if path else name

    @classmethod
    def execute(cls, name, clip=None) -> io.NodeOutput:
        aligned = load_aligned_encoder(aligned_files()[name])
        if clip is not None:
            encoders.check_encoder(clip, aligned)
        return io.NodeOutput(aligned)
