"""Gemma-3-270M as a ComfyUI CLIP, through ComfyUI's own Gemma class. (MiniLM's is the published pack's node.)"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.sd
import comfy.sd1_clip
import folder_paths
import torch
from comfy.text_encoders.llama import BaseLlama, Gemma3_4B_Config, Llama2_

from directions.sources import load_source

from .encoder import find_gemma


@dataclass
class Config(Gemma3_4B_Config):
    """Gemma-3-270M: narrower than the 4B that ComfyUI knows, and without its scaling of positions."""

    vocab_size: int = 262144
    hidden_size: int = 640
    intermediate_size: int = 2048
    num_hidden_layers: int = 18
    num_attention_heads: int = 4
    num_key_value_heads: int = 1
    max_position_embeddings: int = 32768

    rope_scale = [1.0, 1.0]


class Gemma3_270M(BaseLlama, torch.nn.Module):
    """ComfyUI's transformer with these settings."""

    def __init__(self, config_dict, dtype, device, operations):
        super().__init__()
        config = Config(**config_dict)
        self.num_layers = config.num_hidden_layers
        self.model = Llama2_(config, device=device, dtype=dtype, ops=operations)
        self.dtype = dtype


class Transformer(comfy.sd1_clip.SDClipModel):
    """Its last states, after the final norm."""

    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={},
            model_class=Gemma3_270M,
            layer="last",
            special_tokens={"start": 2, "pad": 0},
            layer_norm_hidden_state=False,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options,
        )


def load_gemma():
    """Gemma-3-270M from its pip package, in float32."""
    path = find_gemma()
    model, own_tokenizer = load_source(path)

    class Packaged:
        """What ComfyUI's tokenizer asks for one: the package's own."""

        @staticmethod
        def from_pretrained(_):
            return own_tokenizer

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            super().__init__(
                str(path),
                max_length=99999999,
                pad_with_end=False,
                embedding_directory=embedding_directory,
                embedding_size=640,
                embedding_key="gemma3_270m",
                tokenizer_class=Packaged,
                has_end_token=False,
                pad_to_max_length=False,
                min_length=1,
                tokenizer_data=tokenizer_data,
            )

    class Target:
        params = {"clip_name": "gemma3_270m", "clip_model": Transformer, "name": "gemma3_270m"}
        clip = comfy.sd1_clip.SD1ClipModel

        @staticmethod
        def tokenizer(embedding_directory=None, tokenizer_data={}):
            return comfy.sd1_clip.SD1Tokenizer(
                embedding_directory, tokenizer_data, clip_name="gemma3_270m", tokenizer=Tokenizer
            )

    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(
        Target, embedding_directory=embeddings, parameters=268_000_000, model_options={"dtype": torch.float32}
    )
    missing, _ = clip.load_sd(
        {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("lm_head")}
    )
    if missing:
        raise ValueError(f"the package's weights lack {list(missing)[:4]}")
    return clip
