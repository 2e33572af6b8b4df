"""A text encoder's layout: found out once per CLIP, then asked for a prompt's content, states and special tokens' states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Collection, Mapping

import torch
from torch import Tensor

from ...directions.alignment import PROBE_PROMPT
from ...directions.place import Place
from ...directions.special_tokens import special_states
from .content import attended, content_of_tokens, special_positions
from .past import same_text
from .places import encode, find_places, slots
from .templates import Template, Tokens, find_templates, quiet, streams, tokenizer_of


@dataclass(frozen=True)
class Layout:
    """Where the prompt is in what a CLIP returns.

    Attributes:
        templates: what each tokenizer puts around a prompt, by token stream.
        places: where each slot lies in the output, by slot.
        tokenize: how to tokenize a prompt whose states alone are wanted.
        decoders: each tokenizer's way from tokens to text, by token stream, where there is one.
    """

    templates: Mapping[str, Template]
    places: Mapping[str, Place]
    tokenize: Callable[[str], Tokens]
    decoders: Mapping[str, Callable[[list], str]]

    @classmethod
    def discover(cls, clip: Any) -> "Layout":
        """By asking the CLIP: a few prompts are tokenized, and one is encoded a few times with a token changed.

        Raises:
            Unsteerable: it gives the prompt, but no states.
        """
        templates = find_templates(clip)
        tokens = clip.tokenize(PROBE_PROMPT)
        calm = quiet(tokens)
        output, more, tokenize = encode(clip, calm), set[str](), clip.tokenize
        if calm is not tokens:
            whole = encode(clip, tokens)
            more = set(whole) - set(output)
            if all(torch.equal(value, whole[name]) for name, value in slots(output).items()):
                tokenize = lambda prompt: quiet(clip.tokenize(prompt))
        places = find_places(clip, templates, calm, output, more)
        return cls(templates, places, tokenize, _decoders(clip, templates))

    @classmethod
    def known(cls, clip: Any, places: Mapping[str, Place]) -> "Layout":
        """Of a CLIP whose slots are known, from its alignment; nothing is encoded."""
        templates = find_templates(clip)
        return cls(templates, places, clip.tokenize, _decoders(clip, templates))

    def only(self, slots: Collection[str]) -> "Layout":
        """The same with some of the slots."""
        return replace(self, places={name: place for name, place in self.places.items() if name in slots})

    def content(self, tokens: Tokens, output: Mapping[str, Any]) -> dict[str, Tensor]:
        """The prompt's own tokens in every sequence slot, bool [T]."""
        return content_of_tokens(tokens, self.places, self.templates, output)

    def same_text(self, tokens: Tokens, slot: str) -> list[list[int]] | None:
        """Of each of a slot's own tokens the ids beside its states that hold the same text; None where it can't be told."""
        place, found = self.places[slot], streams(tokens)
        own, other = place.keys[0], next((key for _, _, key in place.past if key in self.decoders), "")
        if not other or own not in self.decoders or any(len(found.get(key, ())) != 1 for key in (own, other)):
            return None
        ids = [tokens[own][0][i][0] for i in self.templates[own].content(tokens[own][0])]
        others = [token[0] for token in tokens[other][0]]
        return same_text(ids, others, self.decoders[own], self.decoders[other])

    def states(self, tokens: Tokens, output: Mapping[str, Any]) -> dict[str, Tensor]:
        """A prompt's content states by slot, [T, W] in float32 on the CPU; of the slots that its output has."""
        masks = self.content(tokens, output)
        rows = {}
        for name, place in self.places.items():
            value = output.get(place.tensor)
            if not torch.is_tensor(value) or value.shape[-1] != place.columns:
                continue
            if value.dim() == 2:
                rows[name] = value[:1].float().cpu()
                continue
            states = first_row(value, place).float().cpu()
            own = states[masks[name]] if name in masks else states
            rows[name] = own if len(own) else states
        return rows

    def special_states(self, tokens: Tokens, output: Mapping[str, Any]) -> dict[str, dict[int, Tensor]]:
        """The states of a prompt's special tokens by slot and role, in float32 on the CPU."""
        found: dict[str, dict[int, Tensor]] = {}
        for name, mask in self.content(tokens, output).items():
            place, value = self.places[name], output[self.places[name].tensor]
            if value.shape[-1] != place.columns or not mask.any():
                continue
            states = first_row(value, place).float().cpu()
            found[name] = special_states(states, special_positions(mask, attended(value, place, output)[0], place))
        return found


def _decoders(clip: Any, keys: Collection[str]) -> dict[str, Callable[[list], str]]:
    found = {key: getattr(getattr(tokenizer_of(clip, key), "tokenizer", None), "decode", None) for key in keys}
    return {key: decode for key, decode in found.items() if decode is not None}


def first_row(tensor: Tensor, place: Place) -> Tensor:
    """A sequence slot's states of the first prompt of a batch, as a view [T, W]."""
    return (tensor[0] if place.layer is None else tensor[0, place.layer])[:, : place.width]
