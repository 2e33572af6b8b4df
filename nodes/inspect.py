"""Inspect Conditioning."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from comfy_api.latest import io

from ..directions.direction_format import GLOBAL
from . import encoders
from .drawing.heatmap import THEMES, draw, labels, word_scores
from .sockets import CATEGORY, Aligned
from .words import Word


class InspectConditioning(io.ComfyNode):
    """How unsafe each word looks, before and after steering: a picture, a number and a verdict."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SafetyDirectionInspect",
            display_name="Inspect Conditioning",
            category=CATEGORY,
            description="Shows how unsafe each word of a prompt scores, and whether the prompt is flagged. "
            "Behind an Apply or a Safety Direction CLIP it also shows what steering changed.",
            search_aliases=["nsfw", "safe", "heat map", "safety", "censor"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="From a text encode node or Apply. What was steered also shows how it was before.",
                ),
                Aligned.Input("aligned", tooltip="The direction, aligned to the CLIP that encoded the prompt."),
                io.Float.Input(
                    "budget",
                    default=0.01,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Share of harmless prompts that may be flagged by mistake: 0.01 is 1%.",
                ),
                io.Clip.Input("clip", optional=True, tooltip="With the prompt: writes the words instead of numbers."),
                io.String.Input(
                    "prompt",
                    optional=True,
                    default="",
                    multiline=True,
                    tooltip="The text that was encoded, to name the words.",
                ),
                io.String.Input(
                    "category",
                    optional=True,
                    default="",
                    tooltip="Whose scores colour the words: empty is all together, or a category: violence.",
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
                io.Image.Output(
                    display_name="heat map",
                    tooltip="The picture: words by score, categories, the band of harmless prompts.",
                ),
                io.Float.Output(
                    display_name="score",
                    tooltip="Of the whole prompt, in benign standard deviations; higher is more unsafe.",
                ),
                io.Boolean.Output(display_name="flagged", tooltip="Whether the score is over the budget's threshold."),
                io.String.Output(display_name="text", tooltip="The same in words."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, conditioning, aligned, budget, clip=None, prompt="", category="", theme="light") -> io.NodeOutput:
        after, before = encoders.inspect_conditioning(conditioning, aligned, budget)
        name = category.strip() or GLOBAL
        if name not in after.names:
            raise ValueError(f"no category {name!r}: this direction has {', '.join(after.categories) or 'none'}")
        words = (
            encoders.prompt_words(clip, prompt, len(after.names[name].tokens)) if clip is not None and prompt else None
        )
        picture = torch.from_numpy(draw(after, before, words, name, theme)).float().div(255).unsqueeze(0)
        text = after.text() + _worst_words(after, before, words, name)
        shown = {"text": (text,), "safety_direction": (_for_page(after, before, words),)}
        return io.NodeOutput(picture, after.score, after.flagged, text, ui=shown)


def _worst_words(
    after: encoders.Reading, before: encoders.Reading | None, words: Sequence[Word] | None, name: str, count: int = 6
) -> str:
    """The most unsafe words, in words."""
    if not words:
        return ""
    scores = word_scores((before or after).names[name].tokens, words)
    now = word_scores(after.names[name].tokens, words)
    worst = sorted(range(len(words)), key=lambda i: -scores[i])[:count]
    parts = (
        f"{words[i].text} (word {i + 1}) {scores[i]:+.1f}" + (f" to {now[i]:+.1f}" if before else "") for i in worst
    )
    numbered = [
        f"{i + 1} {word.text}" for i, (word, shown) in enumerate(zip(words, labels(words, 0))) if shown != word.text
    ]
    missing = f"\nno font for: {', '.join(numbered)}" if numbered else ""
    return f"\n{'all together' if name == GLOBAL else name}, most unsafe words: {', '.join(parts)}{missing}"


def _for_page(after: encoders.Reading, before: encoders.Reading | None, words: Sequence[Word] | None) -> dict[str, Any]:
    """What web/js/preview.js draws in the node."""

    def names(reading: encoders.Reading) -> dict[str, Any]:
        return {
            name: {
                "words": [round(s, 1) for s in word_scores(scores.tokens, words)],
                "score": round(scores.prompt, 2),
                "threshold": round(scores.threshold, 2),
                "band": [round(edge, 2) for edge in scores.band],
            }
            for name, scores in reading.names.items()
        }

    return {
        "words": [word.text for word in words] if words is not None else None,
        "flagged": after.flagged,
        "budget": after.budget,
        "after": names(after),
        "before": names(before) if before else None,
    }
