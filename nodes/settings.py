"""The settings that Apply, CLIP and Guard share."""

from __future__ import annotations

from comfy_api.latest import io

from ..directions.steer import MODES, SteeringSettings

ON_FLAG = ("steer", "refuse")

ADVANCED = {"advanced": True}
"""Of inputs that few need, which the page may fold away; an argument of its own from ComfyUI 0.24 on."""


def steering_inputs() -> list[io.Input]:
    """Mode, strength, budget and categories; see `steering_settings`."""
    return [
        io.Combo.Input(
            "mode",
            options=list(MODES),
            default="gate",
            tooltip="gate: only prompts over the budget's threshold, landing among harmless states. "
            "graded: strength grows with the prompt's score. add: every prompt, as in the paper. "
            "project: one-sided, to the harmless level.",
        ),
        io.Float.Input(
            "alpha",
            default=5.0,
            min=-20.0,
            max=20.0,
            step=0.1,
            tooltip="Strength in benign spreads (standard deviations of harmless prompts). 1 to 7 is usual; 0 is off.",
        ),
        io.Float.Input(
            "budget",
            default=0.01,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Share of harmless prompts that may be steered by mistake: 0.01 is 1%. A smaller one flags less.",
        ),
        io.String.Input(
            "categories",
            default="",
            tooltip="Empty: everything the direction knows. Or some of its categories, with commas: violence, sexual.",
        ),
    ]


def on_flag_input() -> io.Input:
    """Steer or refuse a prompt over the threshold."""
    return io.Combo.Input(
        "on_flag",
        options=list(ON_FLAG),
        default="steer",
        optional=True,
        tooltip="What happens to a prompt over the budget's threshold. steer: it is moved. refuse: the run stops "
        "before anything is sampled.",
    )


def steering_settings(mode: str, alpha: float, budget: float, categories: str) -> SteeringSettings:
    """The settings as the library takes them; categories are names with commas, none is the global direction."""
    names = tuple(part.strip() for part in categories.split(",") if part.strip())
    return SteeringSettings(mode, alpha, names or None, budget)
