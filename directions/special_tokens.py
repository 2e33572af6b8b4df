"""Special tokens: start, end and padding. They hold no word of the prompt and yet its meaning, so a flagged prompt's move along.

A role says where a special token stands: +j is the j-th before the prompt's own tokens, -k the k-th behind them, and REST
everything behind the last such k, where padding isn't masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Mapping, Sequence

import torch
from torch import Tensor

from .bank import nearest, spacing_of
from .eight_bits import eight_bits_or_half

REST = 0

MAX_ROLES = 8
"""On each side of the prompt. It bounds what a file can ask for."""

STEADY = 1e-3
"""Below this share of the prompts' own spread a state counts as the same for every prompt: half precision rounds at 0.0005."""


@dataclass(frozen=True)
class SpecialTokenBank:
    """States of benign prompts' special tokens, to land on.

    Attributes:
        prompts: [M, W], the mean of each prompt's own tokens.
        states: [M, R, W], its special tokens'; of REST their mean.
        roles: the R roles.
    """

    prompts: Tensor
    states: Tensor
    roles: tuple[int, ...]

    @classmethod
    def of(cls, prompts: Tensor, special: Sequence[Mapping[int, Tensor]]) -> "SpecialTokenBank":
        """Of prompts' means [M, W] and their special tokens' states by role; one that is the same for every prompt,
        like CLIP's start, is left out."""
        if not special:
            return cls(prompts.half(), prompts.new_zeros(len(prompts), 0, prompts.shape[1]).half(), ())
        size = prompts.std(0, correction=0).norm()
        stacked = {
            role: torch.stack([own[role] for own in special]) for role in sorted(set.intersection(*map(set, special)))
        }
        varying = tuple(role for role, rows in stacked.items() if rows.std(0, correction=0).norm() > STEADY * size)
        states = (
            torch.stack([stacked[role] for role in varying], 1)
            if varying
            else prompts.new_zeros(len(prompts), 0, prompts.shape[1])
        )
        limit = torch.finfo(torch.float16).max
        means, states = (eight_bits_or_half(own.clamp(-limit, limit)) for own in (prompts, states))
        return cls(means, states, varying)

    @cached_property
    def spacing(self) -> Tensor:
        """[M], how far apart the prompts' means lie around each."""
        return spacing_of(self.prompts)

    def land(self, states: Tensor, content: Tensor, positions: Mapping[int, Sequence[int]]) -> Tensor:
        """Move one prompt's special tokens to those of the benign prompts that its own tokens are nearest to.

        Args:
            states: [T, W], the prompt's own tokens already steered.
            content: bool [T], the prompt's own tokens.
            positions: where the special tokens of each role stand, from `find_special_tokens`.

        Returns:
            [T, W]; REST moves as a whole, by the difference of the means, and keeps what tells its states apart.
        """
        out, limit = states.clone(), torch.finfo(states.dtype).max
        if not self.roles or not content.any():
            return out
        weight, index = nearest(
            states[content].float().mean(0, keepdim=True),
            self.prompts.to(states.device),
            self.spacing.to(states.device),
        )
        landed = (weight[0, :, None, None] * self.states.to(states.device)[index[0]].float()).sum(0)
        for role, target in zip(self.roles, landed):
            at = list(positions.get(role, ()))
            if at:
                own = states[at].float()
                moved = own - own.mean(0) + target if role == REST else target.expand_as(own)
                out[at] = moved.clamp(-limit, limit).to(states)
        return out


def find_special_tokens(
    content: Sequence[bool], attended: Sequence[bool], ends: int, padded: bool, chunk: int = 0
) -> dict[int, list[int]]:
    """Positions of the special tokens by role.

    Args:
        content: the prompt's own tokens; attended: those that aren't masked.
        ends: states between the last own token and the padding.
        padded: the padding isn't masked.
        chunk: attended states per chunk, where long prompts are cut into several, each with special tokens of its own; else 0.
    """
    found: dict[int, list[int]] = {}
    positions = [i for i, one in enumerate(attended) if one]
    size = chunk if chunk and len(positions) % chunk == 0 else max(len(positions), 1)
    for start in range(0, len(positions), size):
        part = positions[start : start + size]
        own = [i for i in part if content[i]]
        if not own:
            continue
        before, behind = [i for i in part if i < own[0]], [i for i in part if i > own[-1]]
        for role, position in enumerate(reversed(before[-MAX_ROLES:]), 1):
            found.setdefault(role, []).append(position)
        named = min(ends, MAX_ROLES)
        for role, position in enumerate(behind[:named], 1):
            found.setdefault(-role, []).append(position)
        if padded and behind[named:]:
            found.setdefault(REST, []).extend(behind[named:])
    return found


def special_states(states: Tensor, positions: Mapping[int, Sequence[int]]) -> dict[int, Tensor]:
    """The states [W] of a prompt's special tokens by role, from all of its states [T, W]."""
    return {role: states[list(at)].float().mean(0) for role, at in positions.items()}
