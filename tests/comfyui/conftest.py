"""One real ComfyUI for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from demo.comfyui import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A running ComfyUI with this pack in it. Where there is none, tests fail with the command that gets one."""
    with Server() as running:
        yield running
