"""Strength Sweep and Label Grid: one prompt under many settings, side by side."""

from __future__ import annotations

import numpy as np
import torch
from comfy_api.latest import io, ui

from ..directions.steer import MODES, SteeringSettings
from . import encoders, settings
from .drawing.heatmap import THEMES
from .drawing.plots import grid_of_pictures, grid_of_words, label, plot_strength
from .sockets import CATEGORY, Aligned

MOST = 64


def _image(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [height, width, 3] as an IMAGE [1, height, width, 3]."""
    return torch.from_numpy(pixels).float().div(255).unsqueeze(0)


def read_settings(modes: str, alphas: str, budget: float, categories: str) -> list[SteeringSettings]:
    """Every mode with every strength.

    Raises:
        ValueError: a word that is no mode, or no number from -20 to 20; says which.
    """
    names = list(dict.fromkeys(part.strip() for part in modes.split(",") if part.strip()))
    wrong = [name for name in names if name not in MODES]
    if wrong or not names:
        fault = f"{wrong[0]!r} is not a mode" if wrong else "none is named"
        raise ValueError(f"modes: {fault}; write some of {', '.join(MODES)}, with commas")
    strengths = []
    for part in filter(None, (part.strip() for part in alphas.split(","))):
        try:
            strengths.append(float(part))
        except ValueError:
            raise ValueError(
                f"alphas: {part!r} is not a number; write strengths with commas, such as 0, 1, 3, 5, 7"
            ) from None
        if not -20 <= strengths[-1] <= 20:
            raise ValueError(f"alphas: {part} is not between -20 and 20 benign spreads")
    if not strengths or len(strengths) * len(names) > MOST:
        raise ValueError(
            f"alphas: {len(strengths)} strengths in {len(names)} modes; there should be 1 to {MOST} settings in all"
        )
    return [
        settings.steering_settings(name, alpha, budget, categories)
        for name in names
        for alpha in sorted(set(strengths))
    ]


class StrengthSweep(io.ComfyNode):
    """One prompt over several strengths and modes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        shared = {one.id: one for one in settings.steering_inputs()}
        return io.Schema(
            node_id="SafetyDirectionSweep",
            display_name="Strength Sweep",
            category=CATEGORY,
            description="Steers one prompt at several strengths and plots its score. Whatever sampler is connected to "
            "the conditioning "
            "runs once for each; Label Grid puts the pictures side by side.",
            search_aliases=["nsfw", "safe", "xy plot", "concept slider", "compare", "strength"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The prompt, as a text encode node gives it."),
                Aligned.Input("aligned", tooltip="The direction, aligned to the CLIP that encoded the prompt."),
                io.String.Input(
                    "alphas",
                    default="0, 1, 3, 5, 7",
                    tooltip="Strengths in benign spreads, with commas; -20 to 20, 0 to 7 is usual. 0 is off.",
                ),
                io.String.Input("modes", default="gate, add", tooltip="Some of gate, add and project, with commas."),
                shared["budget"],
                shared["categories"],
                io.Clip.Input("clip", optional=True, tooltip="With the prompt: writes the words instead of numbers."),
                io.String.Input(
                    "prompt",
                    optional=True,
                    default="",
                    multiline=True,
                    tooltip="The text that was encoded, to name the words.",
                ),
                io.Combo.Input(
                    "theme",
                    options=list(THEMES),
                    default="light",
                    optional=True,
                    tooltip="Background of the pictures that come out.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    is_output_list=True,
                    tooltip="One for each setting: a sampler behind it runs once for each.",
                ),
                io.String.Output(
                    display_name="label", is_output_list=True, tooltip="Each setting's name, for Label Grid."
                ),
                io.Image.Output(display_name="plot", tooltip="Score against strength, a line for each mode."),
                io.Image.Output(
                    display_name="words", tooltip="The prompt's words at every setting, coloured by score."
                ),
                io.String.Output(display_name="text", tooltip="The scores as a table."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, conditioning, aligned, alphas, modes, budget, categories, clip=None, prompt="", theme="light"
    ) -> io.NodeOutput:
        swept = encoders.sweep_conditioning(conditioning, aligned, read_settings(modes, alphas, budget, categories))
        count = len(swept[0].reading.names["global"].tokens)
        words = encoders.prompt_words(clip, prompt, count) if clip is not None and prompt else None
        plot = _image(plot_strength(swept, theme))
        names = [label(one.settings) for one in swept]
        text = "\n".join(
            f"{name}\t{one.reading.score:+.2f}\t{'flagged' if one.reading.flagged else 'not flagged'}"
            for name, one in zip(names, swept)
        )
        shown = {**ui.PreviewImage(plot, cls=cls).as_dict(), "text": (text,)}
        return io.NodeOutput(
            [one.conditioning for one in swept], names, plot, _image(grid_of_words(swept, words, theme)), text, ui=shown
        )


class LabelGrid(io.ComfyNode):
    """Pictures side by side, each with its label."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionGrid",
            display_name="Label Grid",
            category=CATEGORY,
            description="Puts the pictures of a sweep side by side, each with its label. Of videos, frame by frame.",
            search_aliases=["xy plot", "compare", "contact sheet", "grid"],
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The pictures of a sweep, as they come out of VAE Decode; they may differ in size.",
                ),
                io.String.Input("label", force_input=True, tooltip="The labels of the Strength Sweep."),
                io.Int.Input(
                    "columns",
                    default=0,
                    min=0,
                    max=64,
                    tooltip="Pictures to a row; 0 gives every mode a row of its own.",
                ),
                io.Int.Input(
                    "cell",
                    default=384,
                    min=64,
                    max=2048,
                    step=8,
                    tooltip="Longer side of each picture, in pixels; 256 to 512 is usual.",
                ),
                io.Combo.Input(
                    "theme",
                    options=list(THEMES),
                    default="light",
                    optional=True,
                    tooltip="Background of the picture that comes out.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The grid; of videos, a batch with one for each frame.")
            ],
            is_input_list=True,
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images, label, columns, cell, theme=("light",)) -> io.NodeOutput:
        if len(label) < len(images):
            raise ValueError(
                f"{len(images)} pictures and {len(label)} labels: connect the label output of the Strength Sweep that "
                f"they come from"
            )
        frames = max(len(batch) for batch in images)
        grids = []
        for frame in encoders.progress(range(frames), frames):
            pixels = [
                (batch[min(frame, len(batch) - 1), ..., :3].cpu().numpy() * 255).clip(0, 255).astype(np.uint8)
                for batch in images
            ]
            grids.append(_image(grid_of_pictures(pixels, label, columns[0], cell[0], theme[0])))
        grid = torch.cat(grids)
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid[:1], cls=cls))
