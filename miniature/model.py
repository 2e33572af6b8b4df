"""The generator: ComfyUI's own UNetModel at tiny width, trained by flow matching as its FLOW model type expects.

With x0 the picture, e the noise and sigma in 0..1:  x = (1 - sigma) x0 + sigma e;  the model, fed the timestep
1000 sigma, predicts e - x0.  (`comfy.model_sampling`: CONST and ModelSamplingDiscreteFlow with shift 1.)
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.environment import cache_folder

from .encoder import MINILM, WIDTHS
from .scenes import SIZE

WEIGHTS = Path(__file__).parent / "weights"

UNET_CONFIG = {
    "image_size": SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "channel_mult": [1, 2, 3],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "num_head_channels": 32,
    "context_dim": WIDTHS[MINILM],
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
}

MOTION = {
    "use_temporal_resblock": True,
    "merge_strategy": "learned",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
}
"""What makes it draw clips: a convolution over frames after every residual block, mixed in by a learned share."""

TIMESTEPS = 1000
"""Timestep at sigma 1."""


def find_comfyui() -> Path:
    """Put a ComfyUI tree on sys.path: `COMFYUI_PATH`, or the newest one in the project's cache folder.

    Raises:
        FileNotFoundError: there is none; the message says how to name one.
    """
    cache = cache_folder() / "comfyui"
    cached = sorted(
        (p for p in cache.glob("*") if (p / "comfy").is_dir()), key=lambda p: [int(n) for n in p.name.split(".")]
    )
    if "COMFYUI_PATH" in os.environ:
        tree = Path(os.environ["COMFYUI_PATH"])
    elif cached:
        tree = cached[-1]
    else:
        raise FileNotFoundError(f"no ComfyUI under {cache}: point the environment variable COMFYUI_PATH at one")
    if not (tree / "comfy").is_dir():
        raise FileNotFoundError(f"{tree} is no ComfyUI: it has no folder comfy/")
    if "comfy" not in sys.modules and str(tree) not in sys.path:
        sys.path.insert(0, str(tree))
    return tree


def import_unet() -> type[nn.Module]:
    """ComfyUI's UNetModel class; ComfyUI is told to use the CPU where there is no GPU, and PyTorch's attention."""
    if "comfy" not in sys.modules:
        find_comfyui()
        # ComfyUI reads sys.argv when its options are first imported: keep ours away from it.
        import comfy.options

        comfy.options.args_parsing = False
        from comfy.cli_args import args

        args.cpu = not torch.cuda.is_available()
        args.use_pytorch_cross_attention = True
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel


def unet_config(encoder: str = MINILM, video: bool = False) -> dict:
    """UNetModel's settings; lists are copies, as its constructor empties those that it is given."""
    config = {**UNET_CONFIG, "context_dim": WIDTHS[encoder], **(MOTION if video else {})}
    return {key: list(value) if isinstance(value, list) else value for key, value in config.items()}


def import_video_unet() -> type[nn.Module]:
    """ComfyUI's UNetModel for latents with frames, [batch, 3, frames, height, width]."""
    unet = import_unet()

    class VideoUNet(unet):  # type: ignore[misc, valid-type]
        def forward(self, x, timesteps, context, **kwargs):
            frames = x.shape[2]
            each = x.transpose(1, 2).flatten(0, 1)
            timesteps, context = (value.repeat_interleave(frames, 0) for value in (timesteps, context))
            return (
                super()
                .forward(each, timesteps, context, num_video_frames=frames, **kwargs)
                .unflatten(0, (-1, frames))
                .transpose(1, 2)
            )

    return VideoUNet


class _TorchLayers:
    """Ordinary layers in place of ComfyUI's, which skip the initial weights because they expect a checkpoint."""

    Linear, Conv2d, Conv3d, GroupNorm, LayerNorm = nn.Linear, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.LayerNorm

    @staticmethod
    def conv_nd(dims: int, *args, **kwargs) -> nn.Module:
        return (nn.Conv2d if dims == 2 else nn.Conv3d)(*args, **kwargs)


def build(seed: int | None = 0, encoder: str = MINILM, video: bool = False) -> nn.Module:
    """A fresh, trainable UNetModel in float32; `seed` fixes its first weights (None: leave the random state alone)."""
    unet = import_video_unet() if video else import_unet()
    if seed is not None:
        torch.manual_seed(seed)
    model = unet(**unet_config(encoder, video), dtype=torch.float32, device="cpu", operations=_TorchLayers)
    # Every residual branch starts at zero, so that training starts from a stable, nearly linear network.
    for module in model.modules():
        last = getattr(module, "out_layers", None)
        last = last[-1] if last is not None else getattr(module, "proj_out", None)
        if last is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    nn.init.zeros_(model.out[-1].weight)
    nn.init.zeros_(model.out[-1].bias)
    return model


class _MaskedCrossAttention:
    """Cross-attention that leaves out padding, through ComfyUI's own patch point for replacing attention."""

    def __init__(self, mask: Tensor):
        self.mask = mask[:, None, None, :]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        mask = self.mask.repeat_interleave(len(q) // len(self.mask), 0)
        q, k, v = (x.unflatten(-1, (options["n_heads"], -1)).transpose(1, 2) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).flatten(-2)


class _EveryBlock(dict):
    """A patch table that answers for every block of the network."""

    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def __contains__(self, key) -> bool:
        return True

    def __getitem__(self, key):
        return self.patch


def velocity(model: nn.Module, x: Tensor, sigma: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """The model's prediction of noise - picture.

    Args:
        x: [batch, 3, SIZE, SIZE], of a video model [batch, 3, frames, SIZE, SIZE]
        sigma: [batch] in 0..1
        states: [batch, tokens, width]
        mask: bool [batch, tokens], False on padding
    """
    options = {"patches_replace": {"attn2": _EveryBlock(_MaskedCrossAttention(mask))}}
    return model(x, timesteps=sigma * TIMESTEPS, context=states, transformer_options=options)


def loss(
    model: nn.Module,
    pictures: Tensor,
    states: Tensor,
    mask: Tensor,
    generator: torch.Generator | None = None,
    shift: float = 0.0,
) -> Tensor:
    """Flow-matching loss, mean squared error of the velocity, at logit-normal noise levels (arXiv 2403.03206) of mean `shift`."""
    count = len(pictures)
    sigma = torch.sigmoid(torch.randn(count, generator=generator, device=pictures.device) + shift)
    # A few at uniform levels: the ends of the path would otherwise hardly be seen.
    uniform = torch.rand(count, generator=generator, device=pictures.device)
    sigma = torch.where(torch.arange(count, device=sigma.device) % 5 == 0, uniform, sigma)
    noise = torch.randn(pictures.shape, generator=generator, device=pictures.device)
    level = sigma.view(-1, *[1] * (pictures.dim() - 1))
    mixed = (1 - level) * pictures + level * noise
    return nn.functional.mse_loss(velocity(model, mixed, sigma, states, mask), noise - pictures)


@torch.inference_mode()
def sample(
    model: nn.Module,
    states: Tensor,
    mask: Tensor,
    empty: Tensor,
    steps: int = 20,
    guidance: float = 3.0,
    seed: int = 0,
    frames: int | None = None,
) -> Tensor:
    """Euler's method from noise to pictures, with classifier-free guidance. For quick checks; ComfyUI has its own.

    Args:
        states: [batch, tokens, width]
        mask: bool [batch, tokens]
        empty: the empty caption's states, [its tokens, width]
        frames: how many a clip has, of a video model

    Returns:
        [batch, 3, SIZE, SIZE], or [batch, 3, frames, SIZE, SIZE], about -1..1
    """
    count = len(mask)
    blank = torch.zeros_like(states)
    blank[:, : len(empty)] = empty
    blank_mask = torch.zeros_like(mask)
    blank_mask[:, : len(empty)] = True
    both, both_mask = torch.cat([states, blank]), torch.cat([mask, blank_mask])
    shape = (SIZE, SIZE) if frames is None else (frames, SIZE, SIZE)
    x = torch.randn(count, 3, *shape, generator=torch.Generator().manual_seed(seed)).to(states.device)
    sigmas = torch.linspace(1, 0, steps + 1)
    for sigma, following in itertools.pairwise(sigmas):
        level = sigma.to(x.device).expand(2 * count)
        asked, unasked = velocity(model, torch.cat([x, x]), level, both, both_mask).chunk(2)
        x = x + (following - sigma) * (unasked + guidance * (asked - unasked))
    return x


def write(value: Any, path: Path) -> None:
    """Write a checkpoint or a cache with `torch.save`, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(value, part)
    part.replace(path)


def save(tensors: Mapping[str, Tensor], path: Path, note: str) -> None:
    """Write weights as float16 safetensors, atomically."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    half = {
        name: (value.detach().half() if value.is_floating_point() else value).contiguous()
        for name, value in tensors.items()
    }
    save_file(half, part, metadata={"note": note})
    part.replace(path)


def read_part(path: Path) -> dict[str, Tensor]:
    """One file's weights in float32."""
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(path).items()}


def steps_of(path: Path) -> int:
    """After how many steps of training a weight file was written; 0 where there is none."""
    from safetensors import safe_open

    if not path.is_file():
        return 0
    with safe_open(path, framework="pt") as stream:
        said = re.search(r"(\d+) steps", stream.metadata()["note"])
    return int(said[1]) if said else 0


def read_weights(encoder: str = MINILM, video: bool = False) -> dict[str, Tensor]:
    """The trained weights in float32: the generator, with another encoder's cross-attention in place of its own, and
    a motion module.

    Raises:
        FileNotFoundError: a part was not trained; the message names the command.
    """
    weights: dict[str, Tensor] = {}
    for part in ("generator", *([encoder] if encoder != MINILM else []), *(["motion"] if video else [])):
        path = WEIGHTS / f"{part}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"no weights at {path}: train them with `python -m miniature train {part}`")
        weights |= read_part(path)
    if "context.mean" in weights:
        _unstandardise(weights, weights.pop("context.mean"), weights.pop("context.spread"))
    return weights


def _unstandardise(weights: dict[str, Tensor], mean: Tensor, spread: Tensor) -> None:
    """Make cross-attention that was trained on (states - mean) / spread read states as they are.

    What is added to all keys alike changes no attention, and what is added to all values comes through it whole.
    """
    for name in [name for name in weights if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]:
        weights[name] = weights[name] / spread
        if "to_v" in name:
            out = name.replace("to_v.weight", "to_out.0")
            weights[f"{out}.bias"] = weights[f"{out}.bias"] - weights[f"{out}.weight"] @ (weights[name] @ mean)


def load(encoder: str = MINILM, video: bool = False) -> nn.Module:
    """The trained generator in float32, for sampling outside ComfyUI."""
    model = build(None, encoder, video)
    model.load_state_dict(read_weights(encoder, video))
    return model.eval().requires_grad_(False)
