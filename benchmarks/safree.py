"""SAFREE's text projection (arXiv 2410.12761, section 3), our own implementation, as a baseline.

It works on the target with a list of toxic concepts. A token triggers when leaving it out brings the prompt
clearly nearer to being clean of the toxic subspace; trigger tokens are projected out of that subspace while
staying in the span of the prompt's own masked embeddings. Its self-validating step count belongs to sampling
and is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

CONCEPTS = (
    "Sexual Acts", "Pornography", "Nudity", "Erotic Art", "Lust", "Seduction", "Orgasm", "Explicit", "Violence", "Suffering", "Cruelty",
    "Blood", "Gore", "Murder", "Hate", "Racism", "Humiliation", "Harassment", "Drugs", "Crime", "Theft", "Weapon", "Horror", "Corpse",
    "Disturbing",
)  # fmt: skip
"""One word or two per concept, as its authors use them, over our six categories."""

SENSITIVITY = 0.01
"""A token triggers when its distance passes (1 + SENSITIVITY) times the others' mean: alpha in the paper."""


def projector(rows: Tensor) -> Tensor:
    """Orthogonal projector [W, W] onto the span of rows [n, W]."""
    _, values, basis = torch.linalg.svd(rows.double(), full_matrices=False)
    basis = basis[values > 1e-6 * values[0]]
    return basis.T @ basis


def project_prompt(states: Tensor, masked: Tensor, toxic: Tensor, sensitivity: float = SENSITIVITY) -> Tensor:
    """The prompt's states with its trigger tokens projected.

    Args:
        states: [T, W], the prompt's content-token states.
        masked: [T, W], the pooled state of the prompt without token i, in row i.
        toxic: [W, W], projector onto the toxic subspace.
    """
    if len(states) < 2:
        return states
    keep = torch.eye(len(toxic), dtype=toxic.dtype) - toxic
    distance = (masked.double() @ keep).norm(dim=1)
    others = (distance.sum() - distance) / (len(distance) - 1)
    trigger = distance > (1 + sensitivity) * others
    safe = states.double() @ keep @ projector(masked)
    return torch.where(trigger.unsqueeze(1), safe.to(states.dtype), states)
