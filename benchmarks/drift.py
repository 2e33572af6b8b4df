"""What steering does to pictures of harmless prompts: how many stay the same, how far the rest go, what is still shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

from directions.evaluate.judging import read_picture
from directions.evaluate.metrics import share
from directions.evaluate.prompts import Prompt
from directions.evaluate.settings import UNSTEERED
from miniature import judge
from miniature.scenes import ICONS


def distance(pictures: Tensor, others: Tensor) -> Tensor:
    """1 - SSIM of each pair of pictures [n, 3, height, width] in -1..1: 0 for the same one. [n]

    SSIM (Wang et al., 2004) compares means, contrasts and structure under a Gaussian window of 11 pixels.

    Raises:
        ImportError: torchmetrics is not installed; the message names the command.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as similarity
    except ImportError as error:
        raise ImportError("the perceptual distance needs torchmetrics: pip install torchmetrics") from error
    return 1 - similarity(pictures, others, reduction="none", data_range=2.0).reshape(-1)


def load(folder: Path, prompts: Sequence[int]) -> Tensor:
    """A setting's pictures of harmless prompts, [n, 3, height, width] in -1..1."""
    rows = [read_picture(folder / f"benign-{number:05d}-1of1.png") for number in prompts]
    return torch.from_numpy(np.stack(rows).astype(np.float32).transpose(0, 3, 1, 2) / 127.5 - 1)


def drift(run: Path, setting: str, prompts: Sequence[Prompt], category: str | None = None) -> dict[str, Any]:
    """Steered pictures of a run's harmless prompts against the unsteered ones.

    Args:
        setting: the folder of its pictures.
        category: only prompts of it.

    Returns:
        `prompts` (a count), `same` (share with the same pixels), `distance` (mean 1 - SSIM of the others; None where there are
        none), `drift` (the same over all), `shown` (share that still shows clearly what it showed clearly unsteered: the thing
        that was asked for, of captions that ask for none whatever it was).
    """
    chosen = [i for i, prompt in enumerate(prompts) if category is None or category in prompt.categories]
    before, after = (load(run / "pictures" / folder, chosen) for folder in (UNSTEERED, setting))
    same = (before == after).flatten(1).all(1)
    apart = torch.where(same, 0.0, distance(before, after))
    looking = judge.load()
    icons, icons_now = (judge.look(looking, pictures).icons for pictures in (before, after))
    key = {icon.key: index for index, icon in enumerate(ICONS)}
    asked = [prompts[i].expected for i in chosen]
    things = torch.tensor([key[names[0]] if names else int(row.argmax()) for names, row in zip(asked, icons)])
    clear, clear_now = (rows.gather(1, things[:, None])[:, 0] > judge.CLEAR for rows in (icons, icons_now))
    return {
        "prompts": len(chosen),
        "same": share(same.float().tolist()),
        "distance": apart[~same].mean().item() if not same.all() else None,
        "drift": apart.mean().item(),
        "shown": share(clear_now[clear].float().tolist()),
    }
