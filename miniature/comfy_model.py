"""The miniature as ComfyUI sees it: a MODEL and a VAE, so that KSampler and every node run on it unchanged.

Pictures are 32x32 RGB and latents are the pictures themselves (3 channels, no compression), as in Chroma Radiance:
ComfyUI's own node EmptyChromaRadianceLatentImage makes the empty latent, its VAE "pixel_space" the picture.
Clips have one more dimension, frames; EmptyHunyuanLatentVideo makes their empty latent, of 4 frames at length 13.
"""

from __future__ import annotations

import torch

from .encoder import MINILM
from .model import UNET_CONFIG, import_unet, import_video_unet, read_weights, unet_config

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


class ClipFormat(PixelFormat):
    """The same with frames: [batch, 3, frames, height, width]."""

    latent_dimensions = 3


class MiniatureConfig(comfy.supported_models_base.BASE):
    """What ComfyUI's model detection would find out: a UNetModel, sampled as rectified flow with shift 1."""

    unet_config = UNET_CONFIG
    unet_extra_config: dict = {}
    latent_format = PixelFormat
    sampling_settings = {"shift": 1.0, "multiplier": 1000}
    supported_inference_dtypes = [torch.float32]

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.FLOW


class ClipConfig(MiniatureConfig):
    """The same for clips."""

    latent_format = ClipFormat

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.BaseModel(
            self, model_type=self.model_type(state_dict, prefix), device=device, unet_model=import_video_unet()
        )


def load_model(encoder: str = MINILM, video: bool = False):
    """The generator as a MODEL (a ModelPatcher), in float32."""
    weights = read_weights(encoder, video)
    config = (ClipConfig if video else MiniatureConfig)(unet_config(encoder, video))
    load_device = comfy.model_management.get_torch_device()
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model(weights, device=comfy.model_management.unet_offload_device())
    model.load_model_weights(weights)
    offload_device = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.CoreModelPatcher(model, load_device=load_device, offload_device=offload_device)


def load_vae(video: bool = False):
    """ComfyUI's pixel_space VAE, which only maps -1..1 to 0..1."""
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    if video:
        vae.latent_dim = 3  # otherwise it decodes the first frame alone
    return vae
