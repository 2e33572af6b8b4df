"""What the node that aligns shows while an encoder reads: how much, how long it will take, and that it is once."""

from __future__ import annotations

import time

import comfy.utils
from comfy_execution.utils import get_executing_context

REPORT = 16
"""Prompts between two steps of the progress bar."""

FIRST, EVERY = 2.0, 1.0
"""Seconds until the first text, so that a speed is known, and between two."""


class ReadingProgress:
    """A progress bar over `total` prompts, `finished` of which were read before, with a text in the node; `resumable`: whether a
    cancelled reading goes on where it was."""

    def __init__(self, total: int, finished: int, resumable: bool) -> None:
        self.total, self.finished = total, finished
        self.cancelled = " If you cancel, the next run goes on here." if resumable else ""
        self.bar = comfy.utils.ProgressBar(total)
        self.start = time.monotonic()
        self.next = self.start + FIRST

    def update(self, done: int) -> None:
        if done % REPORT == 0 or done == self.total:
            self.bar.update_absolute(done)
        now = time.monotonic()
        if done == self.total:
            _show(f"{self.total:,} harmless prompts were read, once for this text encoder.")
        elif now >= self.next and done > self.finished:
            self.next = now + EVERY
            left = (now - self.start) / (done - self.finished) * (self.total - done)
            _show(
                f"Reading {self.total:,} harmless prompts, once for this text encoder: {done:,} read, "
                f"about {left:.0f} s left.{self.cancelled}"
            )


def _show(text: str) -> None:
    """In the node that is running, if there is one."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer  # ComfyUI's, which exists only inside it

    PromptServer.instance.send_progress_text(text, context.node_id)
