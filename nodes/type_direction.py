"""Type a Direction."""

from __future__ import annotations

from comfy_api.latest import io

from ..directions.direction import load
from . import encoders
from .host import refuse_to_write
from .settings import ADVANCED
from .sockets import CATEGORY, Aligned

HARMLESS = "smollm2-135m-instruct"
"""The direction of the library whose harmless prompts words are told from."""


class TypeDirection(io.ComfyNode):
    """A direction for any concept, from its words."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionType",
            display_name="Type a Direction",
            category=CATEGORY,
            description="Type what should not be in the picture: cigarettes, logos, spiders. The text encoder itself says "
            "how it sees the words, with about a thousand harmless prompts, once; the result is kept on disk.",
            search_aliases=["nsfw", "safe", "safety", "remove", "block words", "negative", "concept eraser"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder that your prompts go through."),
                io.String.Input(
                    "words",
                    default="cigarettes",
                    tooltip="Words or short phrases for what should not be there, commas between them. Each becomes a category.",
                ),
                io.String.Input(
                    "instead",
                    default="",
                    optional=True,
                    tooltip="What stands in its place: one word or phrase. Empty: whatever harmless comes nearest.",
                ),
                io.String.Input(
                    "contrast",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Words for what looks like it and should stay, commas between them.",
                ),
                Aligned.Input(
                    "aligned",
                    optional=True,
                    tooltip="An aligned direction that the words are added to. Both share its budget.",
                ),
            ],
            outputs=[Aligned.Output(display_name="aligned", tooltip="For Apply, CLIP, Guard, Inspect and Sweep.")],
        )

    @classmethod
    def execute(cls, clip, words: str, instead: str = "", contrast: str = "", aligned=None) -> io.NodeOutput:
        refuse_to_write()  # a file of some megabytes for whatever words somebody thinks of
        typed = encoders.Typed(tuple(_split(words)), instead.strip(), tuple(_split(contrast)))
        direction = load(HARMLESS)
        if aligned is None:
            return io.NodeOutput(encoders.type_direction(clip, typed, direction))
        return io.NodeOutput(encoders.add_typed(clip, aligned, typed, direction))


def _split(words: str) -> list[str]:
    """Words between commas or on lines."""
    return [word.strip() for line in words.splitlines() for word in line.split(",") if word.strip()]
