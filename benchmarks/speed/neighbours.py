"""Ours against what a user would pick instead: same encoder, same prompts, one process."""

from __future__ import annotations

from statistics import median
from typing import Any, Callable, Iterator

import numpy
import torch

from benchmarks.models import smollm2_path
from benchmarks.safree import CONCEPTS, project_prompt, projector
from directions.sources import load_source

from .clock import Row, in_turn, ratio
from .comfyui import minilm, pack

PROMPTS = (
    "a fishing boat in the harbour at dawn, mist over the water",
    "two children build a sandcastle while their father reads under a striped umbrella",
    "an old clockmaker bends over a brass watch in a room full of clocks",
)
QUESTION = "Is this image prompt unsafe (sexual, violent, hateful, illegal)? Answer yes or no.\n{}"


def measure() -> Iterator[Row]:
    """Seconds beyond the encoder's own pass, over the prompts."""
    nodes, library = pack().nodes.encoders, pack().directions
    clip = minilm()
    direction = library.load("smollm2-135m-instruct")
    tokens = [clip.tokenize(prompt) for prompt in PROMPTS]
    with torch.inference_mode():
        aligned = nodes.align_encoder(clip, direction, "ridge")
        conditioning = [clip.encode_from_tokens_scheduled(entry) for entry in tokens]
        toxic = projector(
            torch.cat(
                [clip.encode_from_tokens(clip.tokenize(concept))[0, 1:-1].mean(0, keepdim=True) for concept in CONCEPTS]
            )
        )
        llm, tokenizer = load_source(smollm2_path())
        questions = [[{"role": "user", "content": QUESTION.format(prompt)}] for prompt in PROMPTS]
        asked = [
            tokenizer.apply_chat_template(one, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            for one in questions
        ]
        settings = library.SteeringSettings("gate", 5.0, direction.categories, 0.01)
        tasks: dict[str, Callable[[], Any]] = {
            "ours": lambda: [nodes.steer_conditioning(one, aligned, settings) for one in conditioning],
            "SAFREE, re-encoding without each token": lambda: [_safree(clip, entry, toxic) for entry in tokens],
            "SmolLM2-135M asked yes or no": lambda: [llm(**one).logits[0, -1] for one in asked],
        }
        try:
            from nudenet import NudeDetector

            detector, picture = (
                NudeDetector(),
                numpy.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=numpy.uint8),
            )
            tasks["NudeNet on a 1024 picture"] = lambda: [detector.detect(picture) for _ in PROMPTS]
        except ImportError:
            yield Row.not_measured("NudeNet on a 1024 picture to ours", "it needs pip install nudenet onnxruntime", "x")
        seconds = in_turn(tasks, 5)
    each = {name: median(values) / len(PROMPTS) * 1e3 for name, values in seconds.items()}
    for name in list(tasks)[1:]:
        yield Row(
            f"{name} to ours",
            ratio(seconds, name, "ours"),
            "x",
            "" if "NudeNet" in name else ">= 30",
            f"{each[name]:.1f} to {each['ours']:.2f} ms a prompt",
        )


def _safree(clip: Any, tokens: dict[str, list], toxic: torch.Tensor) -> torch.Tensor:
    """SAFREE on one prompt; its re-encodings go through the encoder as one batch."""
    ((_, (section,)),) = tokens.items()
    model = clip.cond_stage_model.minilm
    ids = [token[0] for token in section]
    states = model.encode([ids])[0][0, 1:-1]
    masked = model.encode([ids[:i] + ids[i + 1 :] for i in range(1, len(ids) - 1)])[0][:, 1:-1].mean(1)
    return project_prompt(states, masked, toxic)
