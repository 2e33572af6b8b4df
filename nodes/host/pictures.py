"""Judge what a VAE decodes, where the policy names a judge."""

from __future__ import annotations

from typing import Any

import torch

from ..encoders.flag import Refused
from ..judge import as_pictures
from .encoding import NODE
from .log import say
from .server import Host


def judged(pictures: Any, host: Host) -> Any:
    """Pictures [..., height, width, 3 or 4] in 0..1 as they were decoded, with unsafe ones black where the policy steers; what is
    no picture (sound) as it is.

    Raises:
        Refused: one is unsafe and the policy refuses.
    """
    judge = host.judge
    if judge is None or not torch.is_tensor(pictures) or pictures.dim() < 4 or pictures.shape[-1] not in (3, 4):
        return pictures
    each = pictures.reshape(-1, *pictures.shape[-3:])
    scores = judge(as_pictures(each)).unsafe
    assert scores is not None, "judges of this pack's nodes tell"
    unsafe = torch.from_numpy(scores > judge.threshold)
    if not unsafe.any():
        return pictures
    on_flag, count = host.policy.on_flag, int(unsafe.sum())
    action = {"steer": "blacked out", "refuse": "refused", "report": "reported"}[on_flag]
    facts = {"judge": judge.name, "score": float(scores.max()), "threshold": judge.threshold}
    words = f"{NODE}: {count} of {len(each)} pictures unsafe by {judge.name}, {scores.max():.2f} over {judge.threshold:.2f}"
    say(f"{words}, {action}", event="judged", action=action, pictures=len(each), unsafe=count, **facts)
    if on_flag == "refuse":
        raise Refused(f"{words}. Nothing is shown.")
    if on_flag == "report":
        return pictures
    dark = each.clone()
    dark[unsafe.to(dark.device), ..., :3] = 0
    return dark.reshape(pictures.shape)
