"""The miniature as ComfyUI sees it: a MODEL and a VAE, so that KSampler and every node run on it unchanged.

Pictures are 32x32 RGB and latents are the pictures themselves (3 channels, no compression), as in Chroma Radiance:
ComfyUI's own node EmptyChromaRadianceLatentImage makes the empty latent, its VAE "pixel_space" the picture.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .model import UNET_CONFIG, WEIGHTS, import_unet
from .scenes import SIZE

import_unet()  # puts ComfyUI on the path where this isn't ComfyUI already

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.supported_models_base
import comfy.utils


class PixelFormat(comfy.latent_formats.LatentFormat):
    """Latents that are pictures: [batch, 3, height, width] in -1..1, scale 1."""

    latent_channels = 3
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class MiniatureConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's model detection would find out: a UNetModel, sampled as rectified flow with shift 1."""

    unet_config = UNET_CONFIG
    unet_extra_config: dict = {}
    latent_format = PixelFormat
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    supported_inference_dtypes = [torch.float32]

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.FLOW


def load_model(path: str | Path = WEIGHTS / "generator.safetensors"):
    """The generator as a MODEL (a ModelPatcher), in float32."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}: train them with `python -m miniature train`")
    weights = {name: value.float() for name, value in comfy.utils.load_torch_file(str(path)).items()}
    # UNetModel empties the lists it is given.
    config = MiniatureConfig({k: list(v) if isinstance(v, list) else v for k, v in UNET_CONFIG.items()})
    load_device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, device=comfy.model_management.unet_offload_device())
    model.load_model_weights(weights)
    offload_device = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)


def load_vae():
    """ComfyUI's pixel_space VAE, which only maps -1..1 to 0..1."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


def generate(
    model, positive, negative, seeds: int | list[int] = 0, steps: int = 20, cfg: float = 3.0, sampler: str = "euler", scheduler: str = "simple"
) -> Tensor:
    """What the KSampler node does, without a server, one picture per seed.

    Args:
        positive, negative: CONDITIONING, as `clip.encode_from_tokens_scheduled` gives it

    Returns:
        [seeds, 3, SIZE, SIZE], about -1..1 (the LATENT)
    """
    seeds = [seeds] if isinstance(seeds, int) else seeds
    blank = torch.zeros(len(seeds), 3, SIZE, SIZE)
    noise = torch.cat([comfy.sample.prepare_noise(blank[:1], seed) for seed in seeds])
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, blank, disable_pbar=True, seed=seeds[0]
    )
