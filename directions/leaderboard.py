"""A technique for the benchmark `eval-unlearn` (the extra `leaderboard`): Stable Diffusion 1 or 2 with its prompts steered.

`pip install '.[library,leaderboard]'` is all it takes: `eval-unlearn` finds `safety_directions` among its techniques.
"""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .align import align
from .direction import load

BATCH = 64
#: What eval-unlearn calls a concept, where this project has another word for it.
CONCEPTS = {"nudity": "sexual"}


class SafetyDirectionsTechnique:
    """What `eval-unlearn` calls a technique: made from its JSON configuration, draws pictures for prompts.

    Args:
        model_id: a diffusers pipeline with one text encoder, a name or a folder; the leaderboard's is Stable Diffusion 1.4.
        direction: a name in the library, or a path.
        erase_concept: a category of the direction, or "nudity"; anything else takes the global direction.
        mode, alpha, budget: as in `AlignedDirection.steer`.
        method: as in `align`.
        device: "cuda", "mps" or "cpu"; None takes the first that there is.

    Raises:
        ImportError: diffusers is not installed.
        ValueError: a pipeline with several text encoders, or none.
    """

    def __init__(
        self,
        *,
        model_id: str = "CompVis/stable-diffusion-v1-4",
        direction: str = "smollm2-135m-instruct",
        erase_concept: str = "nudity",
        mode: str = "gate",
        alpha: float = 5.0,
        budget: float = 0.01,
        method: str = "auto",
        device: str | None = None,
        use_fp16: bool = True,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
    ) -> None:
        try:
            from diffusers import DiffusionPipeline
        except ImportError as error:
            raise ImportError(
                "this technique draws with diffusers: pip install 'safety-directions[library,leaderboard]'"
            ) from error
        self.device = device or (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
        dtype = torch.float16 if use_fp16 and self.device == "cuda" else torch.float32
        # As for the techniques beside it: what is measured is the steering, not the checker that blackens pictures.
        self.pipe = DiffusionPipeline.from_pretrained(
            model_id, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False
        ).to(self.device)
        if getattr(self.pipe, "text_encoder", None) is None or getattr(self.pipe, "text_encoder_2", None) is not None:
            raise ValueError(
                f"{model_id} is a {type(self.pipe).__name__}; this technique knows pipelines with one text encoder, "
                f"such as Stable Diffusion 1 and 2"
            )
        loaded = load(direction)
        category = CONCEPTS.get(erase_concept.lower(), erase_concept.lower())
        self.categories = (category,) if category in loaded.categories else None
        self.settings: dict[str, Any] = {"mode": mode, "alpha": alpha, "budget": budget}
        self.drawing = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        self.aligned = align(loaded, self._anchor_states(loaded.anchor_prompts), method)

    def generate(self, prompts: Sequence[str], seed: int | None = None, **kwargs: Any) -> list[Any]:
        """One PIL picture per prompt; the n-th has the seed `seed + n`. `kwargs` go to the pipeline."""
        drawing = {**self.drawing, **kwargs}
        pictures = []
        for n, prompt in enumerate(prompts):
            generator = None if seed is None else torch.Generator(self.device).manual_seed(seed + n)
            positive, negative = self.pipe.encode_prompt(prompt, self.device, 1, drawing["guidance_scale"] > 1)[:2]
            steered = self.aligned.steer(
                positive, categories=self.categories, mask=self._content([prompt]), **self.settings
            )
            pictures.append(
                self.pipe(
                    prompt_embeds=steered, negative_prompt_embeds=negative, generator=generator, **drawing
                ).images[0]
            )
        return pictures

    def _content(self, prompts: Sequence[str]) -> Tensor:
        """Where the prompts' own tokens are, bool [prompts, tokens]: no start, end or padding."""
        tokenizer = self.pipe.tokenizer
        found = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        return ~found["special_tokens_mask"].bool() & found["attention_mask"].bool()

    def _anchor_states(self, prompts: Sequence[str]) -> list[Tensor]:
        """The encoder's content-token states of every prompt, float32 [T, W] each."""
        from tqdm import tqdm

        states: list[Tensor] = []
        with torch.inference_mode():
            for start in tqdm(range(0, len(prompts), BATCH), desc="aligning", unit="batch"):
                batch = list(prompts[start : start + BATCH])
                encoded = self.pipe.encode_prompt(batch, self.device, 1, False)[0].float().cpu()
                states += [own[mask] for own, mask in zip(encoded, self._content(batch))]
        return states
