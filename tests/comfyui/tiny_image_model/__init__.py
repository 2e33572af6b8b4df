"""A node pack for tests: the miniature's architecture with random weights, as a MODEL and a VAE. It draws mud."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

import torch
from comfy_api.latest import ComfyExtension, io

sys.path.append(str(Path(__file__).resolve().parents[3]))


class TinyImageModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyImageModel", category="testing", inputs=[], outputs=[io.Model.Output(), io.Vae.Output()]
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from miniature import comfy_model

        return io.NodeOutput(patcher(lambda config: config.get_model({}, device="cpu")), comfy_model.load_vae())


def patcher(make: Callable[[Any], Any], **more: Any) -> Any:
    """A MODEL of random weights: the miniature's settings and `more`, as `make` makes a model of them."""
    from miniature import comfy_model

    torch.manual_seed(0)
    config = comfy_model.MiniatureConfig(
        {k: list(v) if isinstance(v, list) else v for k, v in comfy_model.UNET_CONFIG.items()} | more
    )
    config.set_inference_dtype(torch.float32, None)
    model = make(config)
    with torch.no_grad():
        for weights in model.diffusion_model.parameters():
            weights.copy_(torch.randn_like(weights) * 0.05)
    device = comfy_model.comfy.model_management.get_torch_device()
    return comfy_model.comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=device)


class TinyUnclipModel(io.ComfyNode):
    """A model that takes a picture as a prompt too, 32 wide."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TinyUnclipModel", category="testing", inputs=[], outputs=[io.Model.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from comfy.model_base import SD21UNCLIP, ModelType

        noise = {"noise_schedule_config": {"timesteps": 1000}, "timestep_dim": 32}
        return io.NodeOutput(
            patcher(
                lambda config: SD21UNCLIP(config, noise, ModelType.FLOW, device="cpu"),
                num_classes="sequential",
                adm_in_channels=64,
            )
        )


class TinyStyleModel(io.ComfyNode):
    """Turns a picture, 32 wide, into 4 tokens of the small encoder's width."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TinyStyleModel", category="testing", inputs=[], outputs=[io.StyleModel.Output()])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from comfy.sd import StyleModel
        from comfy.t2i_adapter.adapter import StyleAdapter

        torch.manual_seed(0)
        return io.NodeOutput(StyleModel(StyleAdapter(width=32, context_dim=384, num_head=4, n_layes=1, num_token=4)))


class TinyClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyClipVision",
            category="testing",
            inputs=[io.Int.Input("width")],
            outputs=[io.ClipVision.Output()],
        )

    @classmethod
    def execute(cls, width) -> io.NodeOutput:
        from comfy.clip_vision import ClipVisionModel

        torch.manual_seed(0)
        layers = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_act": "quick_gelu",
        }
        layers |= {
            "num_channels": 3,
            "image_size": 32,
            "patch_size": 8,
            "projection_dim": width,
            "model_type": "clip_vision_model",
        }
        with tempfile.TemporaryDirectory() as folder:  # older versions of ComfyUI take a file only
            config = Path(folder) / "config.json"
            config.write_text(json.dumps(layers), encoding="utf-8")
            vision = ClipVisionModel(str(config))
        with torch.no_grad():
            for weights in vision.model.parameters():
                weights.copy_(torch.randn_like(weights) * 0.1)
        return io.NodeOutput(vision)


class PooledOnly:
    """A text encoder that gives every prompt the same embedding; none when its width is 0."""

    def __init__(self, width: int) -> None:
        self.width = width

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens(self, tokens: str, return_dict: bool) -> dict:
        return {"pooled_output": torch.ones(1, self.width) if self.width else None}


class TinyClip(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyClip", category="testing", inputs=[io.Int.Input("width")], outputs=[io.Clip.Output()]
        )

    @classmethod
    def execute(cls, width) -> io.NodeOutput:
        return io.NodeOutput(PooledOnly(width))


class Failing(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="Failing", category="testing", inputs=[io.Image.Input("image")], outputs=[io.Image.Output()]
        )

    @classmethod
    def execute(cls, image) -> io.NodeOutput:
        raise RuntimeError("this node always fails")


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyImageModel, TinyUnclipModel, TinyStyleModel, TinyClipVision, TinyClip, Failing]


async def comfy_entrypoint() -> Extension:
    return Extension()
