"""A planted direction: a small source and target that share a hidden space, so that what is right is known."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch

from directions.direction import Direction
from tests.published import publish, run

ANCHORS, SOURCE, TARGET = 400, 24, 32


class Planted:
    """Source and target are linear views of one hidden space; the unsafe concept is one hidden axis."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(7)
        hidden = torch.randn(ANCHORS, 16, generator=draw)
        self.to_source = torch.randn(16, SOURCE, generator=draw)
        self.to_target = torch.randn(16, TARGET, generator=draw)
        lengths = torch.randint(2, 9, (ANCHORS,), generator=draw).tolist()
        self.states = [
            hidden[i] @ self.to_target + 0.3 * torch.randn(n, TARGET, generator=draw) for i, n in enumerate(lengths)
        ]
        concept = torch.zeros(16)
        concept[0] = 1.0
        other = torch.zeros(16)
        other[1] = 1.0
        self.truth = {
            "global": concept @ self.to_target,
            "violence": concept @ self.to_target,
            "hate": other @ self.to_target,
        }
        inverse = torch.linalg.pinv(self.to_source)
        self.direction = Direction(
            vectors={
                "global": concept @ self.to_source,
                "violence": concept @ self.to_source,
                "hate": other @ self.to_source,
            },
            readers={"global": -inverse[:, 0], "violence": -inverse[:, 0], "hate": -inverse[:, 1]},
            anchor_states=(hidden @ self.to_source).half(),
            anchor_prompts=tuple(f"prompt {i}" for i in range(ANCHORS)),
            source={"model": "planted", "layers": [0]},
            pairs={},
            licence="CC0",
            created="2026-01-01T00:00:00Z",
            tool_version="test",
        )
        self.unsafe = -6 * self.truth["global"] + 0.3 * torch.randn(5, TARGET, generator=draw)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="session")
def aligned(planted):
    from directions import align

    return align(planted.direction, planted.states)


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A fresh git repository of what would be published from here."""
    return publish(tmp_path_factory.mktemp("git") / "safety-directions")


@pytest.fixture(scope="session")
def site(repository, tmp_path_factory):
    """A folder that the library was installed into from a copy of the repository."""
    folder = tmp_path_factory.mktemp("site")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        folder,
        repository,
        cwd=folder,
    )
    return folder


@pytest.fixture(scope="session")
def archive(repository):
    """What `comfy node publish` would upload."""
    run(sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "pack", cwd=repository)
    return repository / "node.zip"


@pytest.fixture
def shell():
    """Imports a module of `nodes` that doesn't need ComfyUI, which `nodes/__init__.py` does."""
    root = Path(__file__).resolve().parent.parent
    for name, folder in (("shell_pack", root), ("shell_pack.nodes", root / "nodes")):
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [str(folder)]
    yield lambda name: importlib.import_module(f"shell_pack.nodes.{name}")
    for name in [name for name in sys.modules if name.startswith("shell_pack")]:
        del sys.modules[name]
