"""Estimate Safety Direction."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..directions.direction import Direction as DirectionFile
from ..directions.direction import available, read_direction
from ..directions.direction_format import is_name
from ..directions.estimate import estimate
from ..directions.prompts import HERE, pairs_hash, read_pairs, training_anchors
from ..directions.sources import load_source, weights_hash
from . import encoders
from .host import refuse_to_write
from .load import FOLDER, folders
from .sockets import CATEGORY, Direction

SOURCES = "LLM"
SHIPPED = "the pack's own"


def register_sources() -> None:
    """Make models/LLM known to ComfyUI."""
    folder_paths.add_model_folder_path(SOURCES, os.path.join(folder_paths.models_dir, SOURCES), is_default=True)


def sources() -> dict[str, Path]:
    """The language models in models/LLM: Hugging Face folders and GGUF files, also one folder down, by name."""
    found: dict[str, Path] = {}
    for folder in map(
        Path, folder_paths.get_folder_paths(SOURCES) if SOURCES in folder_paths.folder_names_and_paths else []
    ):
        for path in sorted([*folder.glob("*/config.json"), *folder.glob("*.gguf"), *folder.glob("*/*.gguf")]):
            place = path.parent if path.name == "config.json" else path
            found.setdefault(place.relative_to(folder).as_posix(), place)
    return found


def pair_sets() -> dict[str, Path]:
    """The pack's own pairs, and every folder of models/safety_directions with <category>.tsv files, by name."""
    own = {file.parent.name: file.parent for folder in map(Path, folders()) for file in sorted(folder.glob("*/*.tsv"))}
    return {SHIPPED: HERE / "pairs", **own}


def _layers(text: str) -> str | list[int]:
    if text.strip() in ("", "auto"):
        return "auto"
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"layer {text!r}: write auto, one layer's number, or several with commas") from None


class EstimateSafetyDirection(io.ComfyNode):
    """Learns a direction in a local language model and saves it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionEstimate",
            display_name="Estimate Safety Direction",
            category=CATEGORY,
            description="Learns a direction of your own in a language model on this computer, and saves it in "
            "models/safety_directions. "
            "Minutes to hours; the shipped direction needs none of this.",
            search_aliases=["nsfw", "safe", "safety", "concept slider", "control vector", "train"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(sources()),
                    tooltip="A Hugging Face folder (safetensors) or a GGUF file in models/LLM.",
                ),
                io.String.Input(
                    "name",
                    default="my-direction",
                    tooltip="The direction's name, and its file's: small letters, digits, - and _; at most 64.",
                ),
                io.Combo.Input(
                    "pairs",
                    options=list(pair_sets()),
                    default=SHIPPED,
                    tooltip="Prompts that differ in one concept: the pack's own, or a folder of <category>.tsv files "
                    "in models/safety_directions.",
                ),
                io.String.Input(
                    "layer",
                    default="auto",
                    tooltip="Hidden layer, from 0 to the model's depth, or several with "
                    "commas. auto: the one that reads unseen themes best.",
                ),
                io.String.Input(
                    "licence",
                    default="",
                    tooltip="Licence of the direction, written into the file. For those you share it with.",
                ),
            ],
            outputs=[
                Direction.Output(
                    display_name="direction",
                    tooltip="What was learned; also in models/safety_directions under its name.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, model: str, pairs: str) -> bool | str:
        if model not in sources():
            return f"there is no language model {model!r} in models/{SOURCES}"
        return pairs in pair_sets() or f"there are no pairs {pairs!r} in models/{FOLDER}"

    @classmethod
    def execute(cls, model, name, pairs, layer, licence) -> io.NodeOutput:
        refuse_to_write()
        if not is_name(name):
            raise ValueError(f"the name {name!r} should be small letters, digits, - and _; at most 64")
        layers, source = _layers(layer), {"model": model, "weights_sha256": weights_hash(sources()[model])}
        chosen = read_pairs(pair_sets()[pairs])
        kept = _kept(name, source, pairs_hash(chosen), layers)
        direction = kept or _learn(
            Path(folders()[0]) / f"{name}.safetensors", sources()[model], chosen, layers, source, licence
        )
        text = f"{name}: {len(direction.categories)} categories, layers {direction.source['layers']}" + (
            ", as it was saved before" if kept else ""
        )
        return io.NodeOutput(direction, ui={"text": (text,)})


def _kept(name: str, source: dict, pairs: str, layers: str | list[int]) -> DirectionFile | None:
    """The direction of that name, if it was made of the very same things.

    Raises:
        ValueError: there is another of that name; nothing is written over.
    """
    path = available(folders()).get(name)
    if path is None:
        return None
    found = read_direction(path)
    same = all(found.source.get(key) == value for key, value in source.items()) and found.pairs.get("sha256") == pairs
    if not same or layers not in ("auto", found.source.get("layers")):
        raise ValueError(f"there is another direction named {name!r} already: choose another name")
    return found


def _learn(path: Path, place: Path, pairs, layers, source: dict, licence: str) -> DirectionFile:
    # ComfyUI runs nodes in inference mode, where nothing can be fitted.
    with torch.inference_mode(False):
        model, tokenizer = load_source(place)
        given = training_anchors(pairs)
        direction = estimate(
            model,
            tokenizer,
            pairs,
            **given._asdict(),
            layer=layers,
            source=source,
            licence=licence,
            progress=encoders.progress,
        )
    direction.save(path)
    return read_direction(path)
