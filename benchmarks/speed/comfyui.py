"""ComfyUI's own text encoder classes in this process, with the pack beside them."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from typing import Any

import torch

from harness.environment import find
from harness.server import ROOT


def pack(card: bool = False) -> Any:
    """The pack as ComfyUI imports it, from a ComfyUI without models; `pack().nodes.encoders` is what the nodes use.

    Args:
        card: let ComfyUI use a graphics card, if it has one and the pack wasn't imported yet.
    """
    return sys.modules.get("pack") or _imported([] if card and torch.cuda.is_available() else ["--cpu"])


def _imported(options: list[str]) -> Any:
    environment = find("test")
    sys.path[:0] = [os.fspath(environment.comfyui), *map(os.fspath, environment.pythonpath)]
    base = tempfile.mkdtemp(prefix="safety-directions-")
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    sys.argv = [sys.argv[0], *options, "--base-directory", base]
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location(
        "pack", ROOT / "__init__.py", submodule_search_locations=[os.fspath(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    importlib.import_module("pack.nodes.encoders")
    return module


def clip_l() -> Any:
    """CLIP-L at its real size, ComfyUI's class, with random weights: SD1.x's text encoder."""
    pack()
    import comfy.sd
    import comfy.sd1_clip

    class Target:
        params: dict[str, Any] = {}
        clip = comfy.sd1_clip.SD1ClipModel
        tokenizer = comfy.sd1_clip.SD1Tokenizer

    clip = comfy.sd.CLIP(Target, model_options={"dtype": torch.float32})
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in clip.cond_stage_model.parameters():
            weights.copy_(torch.randn(weights.shape, generator=draw) * 0.02)
    return clip


def minilm() -> Any:
    """all-MiniLM-L6-v2 as a ComfyUI CLIP, trained."""
    return pack().nodes.encoders.load_minilm()
