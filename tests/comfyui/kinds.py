"""Every kind of text encoder that ComfyUI has, as its loaders put them together, but small and with random weights.

What they lack on a machine without downloads has a stand-in: tokenizers that come inside the weights, and classes whose sizes
are written into them.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PROMPT = 'a small fox jumps over the green gate called "Mill" and runs'

CLIP = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
T5 = {"d_model": 64, "d_ff": 128, "d_kv": 16, "num_heads": 4, "num_layers": 2}
LLM = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 4,
}
BERT = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
# What is joined to a T5 or padded to its width can't be narrower.
WIDE_T5 = {"t5xxl": T5 | {"d_model": 4096, "d_ff": 32}}
DEEP = LLM | {"num_hidden_layers": 37}  # for those that read out states up to the 36th layer
SMALL = {
    **dict.fromkeys(("clip_l", "clip_g", "clip_h"), CLIP),
    **dict.fromkeys(("t5xxl", "umt5xxl", "pile_t5xl", "mt5xl", "t5base"), T5),
    **dict.fromkeys(("llama", "qwen25_7b", "qwen25_3b", "qwen3_06b", "qwen3_2b", "qwen3_4b", "qwen3_8b", "ministral3_3b"), LLM),
    **dict.fromkeys(("gemma2_2b", "gemma3_4b", "qwen3vl_4b", "qwen3vl_8b", "qwen3vl_32b"), LLM),
    "hydit_clip": BERT, "mistral3_24b": LLM | {"num_hidden_layers": 31},
    "": T5,  # ByT5 and UMT5 base, which have no name
}  # fmt: skip
GPT_OSS = {
    "gpt_oss_config": {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "selected_layers": (0, 1, 2, 3),
}  # fmt: skip


class Family(NamedTuple):
    """A text encoder as a loader puts it together.

    Attributes:
        clip, tokenizer: "module:name" below `comfy`, or ".module:name" below `comfy.text_encoders`; a name with brackets is
            called with what is in them. "odd:name" is a stand-in from this file.
        content: where the prompt's own tokens begin, by slot: None for a slot without tokens, -1 where it depends on how the
            installed transformers splits the template. The number of them is the tokenizer's. Empty: it gives no states.
        types: the CLIPType that a loader is asked for.
        configs: other than SMALL.
        data: tokenizer data: a name in DATA for what comes inside the weights, or a value.
        options: model options besides the configs.
        modules: of comfy.text_encoders, where `clip` and `tokenizer` don't name them.
        text: what a slot holds of PROMPT, by a part of the slot's name, where that is not all of it.
        past: what carries the prompt past its states.
        count: how many tokens a prompt is, where its tokenizer isn't simply asked: (clip, prompt) -> int.
    """

    clip: str
    tokenizer: str
    content: dict[str, int | None]
    types: tuple[str, ...] = ()
    configs: dict[str, Any] = {}
    data: dict[str, Any] = {}
    options: dict[str, Any] = {}
    modules: tuple[str, ...] = ()
    text: dict[str, str] = {}
    past: tuple[str, ...] = ()
    count: Callable[[Any, str], int] | None = None


def letters(clip: Any, prompt: str) -> int:
    """LongCat-Image takes what stands in quotation marks letter by letter."""
    split = importlib.import_module("comfy.text_encoders.longcat_image").split_quotation
    tokenizer = clip.tokenizer.qwen25_7b.tokenizer
    return sum(
        len(tokenizer(piece)["input_ids"])
        for part, quoted in split(prompt)
        for piece in (part if quoted else [part])
    )


POOLED = {"pooled_output": None}
SPIECE = {"spiece_model": "sentencepiece"}
HIDREAM = {f"conditioning_llama3[{i}]": 1 for i in range(4)}
SD3, HIDREAM_TOKENS = ".sd3_clip:SD3Tokenizer", ".hidream:HiDreamTokenizer"

FAMILIES = {
    "SD1.x": Family("sd1_clip:SD1ClipModel", "sd1_clip:SD1Tokenizer", {"cond": 1, **POOLED}, ("STABLE_DIFFUSION",)),
    "SD1.x, long CLIP-L": Family(
        "sd1_clip:SD1ClipModel", "sd1_clip:SD1Tokenizer", {"cond": 1, **POOLED}, configs={"clip_l": CLIP | {"max_position_embeddings": 248}},
        data={"clip_l_max_length": 248}, modules=("long_clipl",),
    ),
    "SD2": Family(".sd2_clip:SD2ClipModel", ".sd2_clip:SD2Tokenizer", {"cond": 1, **POOLED}),
    "SDXL": Family("sdxl_clip:SDXLClipModel", "sdxl_clip:SDXLTokenizer", {"cond": 1, **POOLED}),
    "SDXL refiner": Family("sdxl_clip:SDXLRefinerClipModel", "sdxl_clip:SDXLTokenizer", {"cond": 1, **POOLED}),
    "Stable Cascade": Family("sdxl_clip:StableCascadeClipModel", "sdxl_clip:StableCascadeTokenizer", {"cond": 1, **POOLED}, ("STABLE_CASCADE",)),
    "SD3": Family(".sd3_clip:sd3_clip()", SD3, {"cond:g+l": 1, "cond:t5xxl": 77, **POOLED}, ("SD3",), WIDE_T5),
    "SD3 without T5": Family(".sd3_clip:sd3_clip(t5=False)", SD3, {"cond": 1, **POOLED}),
    "SD3: CLIP-L": Family(".sd3_clip:sd3_clip(clip_g=False, t5=False)", SD3, {"cond": 1, **POOLED}),
    "SD3: CLIP-G": Family(".sd3_clip:sd3_clip(clip_l=False, t5=False)", SD3, {"cond": 1, **POOLED}),
    "SD3: T5": Family(".sd3_clip:sd3_clip(clip_l=False, clip_g=False)", SD3, {"cond": 0}, configs=WIDE_T5),
    "SD3: CLIP-L and T5": Family(".sd3_clip:sd3_clip(clip_g=False)", SD3, {"cond:l": 1, "cond:t5xxl": 77, **POOLED}, configs=WIDE_T5),
    "SD3: CLIP-G and T5": Family(".sd3_clip:sd3_clip(clip_l=False)", SD3, {"cond:g": 1, "cond:t5xxl": 77, **POOLED}, configs=WIDE_T5),
    "FLUX": Family(".flux:flux_clip()", ".flux:FluxTokenizer", {"cond": 0, **POOLED}, ("FLUX",)),
    "FLUX.2": Family(".flux:flux2_te()", "odd:Flux2Tokenizer", {"cond": -1}, ("FLUX2",)),
    "FLUX.2 Klein": Family(".flux:klein_te()", ".flux:KleinTokenizer", {"cond": 3}, configs={"qwen3_4b": DEEP}),
    "Chroma": Family(".pixart_t5:pixart_te()", ".pixart_t5:PixArtTokenizer", {"cond": 0}, ("CHROMA",)),
    "PixArt": Family(".pixart_t5:PixArtT5XXL", ".pixart_t5:PixArtTokenizer", {"cond": 0}, ("PIXART",)),
    "AuraFlow": Family(".aura_t5:AuraT5Model", ".aura_t5:AuraT5Tokenizer", {"cond": 0}),
    "HunyuanDiT": Family(
        ".hydit:HyditModel", ".hydit:HyditTokenizer", {"cond": 1, "conditioning_mt5xl": 0}, ("HUNYUAN_DIT",), data={"mt5xl.spiece_model": "sentencepiece"},
    ),
    "HunyuanImage": Family(
        ".hunyuan_image:te()", ".hunyuan_image:HunyuanImageTokenizer", {"cond": 0, "conditioning_byt5small": 6}, ("HUNYUAN_IMAGE",), text={"byt5": "Mill"}
    ),
    "HunyuanImage without ByT5": Family(".hunyuan_image:te(byt5=False)", ".hunyuan_image:HunyuanImageTokenizer", {"cond": 0}),
    "HiDream": Family(".hidream:hidream_clip()", HIDREAM_TOKENS, {"cond": 0, **HIDREAM, **POOLED}, ("HIDREAM",)),
    "HiDream: CLIP-L": Family(".hidream:hidream_clip(clip_g=False, t5=False, llama=False)", HIDREAM_TOKENS, POOLED),
    "HiDream: CLIP-G": Family(".hidream:hidream_clip(clip_l=False, t5=False, llama=False)", HIDREAM_TOKENS, POOLED),
    "HiDream: T5": Family(".hidream:hidream_clip(clip_l=False, clip_g=False, llama=False)", HIDREAM_TOKENS, {"cond": 0}),
    "HiDream: Llama": Family(".hidream:hidream_clip(clip_l=False, clip_g=False, t5=False)", HIDREAM_TOKENS, HIDREAM),
    "HiDream: CLIP-L and Llama": Family(".hidream:hidream_clip(clip_g=False, t5=False)", HIDREAM_TOKENS, {**HIDREAM, **POOLED}),
    "HiDream: T5 and Llama": Family(".hidream:hidream_clip(clip_l=False, clip_g=False)", HIDREAM_TOKENS, {"cond": 0, **HIDREAM}),
    "HiDream O1": Family(".hidream_o1:HiDreamO1TE", ".hidream_o1:HiDreamO1Tokenizer", {}),
    "Lumina2": Family(".lumina2:te()", ".lumina2:LuminaTokenizer", {"cond": 1}, ("LUMINA2",), data=SPIECE),
    "Lumina2 with Gemma 3": Family(".lumina2:te(model_type='gemma3_4b')", ".lumina2:NTokenizer", {"cond": 1}, data=SPIECE),
    "NewBie": Family(
        ".newbie:te()", ".newbie:NewBieTokenizer", {"cond": 1, **POOLED}, ("NEWBIE",), {"": BERT | {"num_hidden_layers": 3}},
        {"gemma_spiece_model": "sentencepiece", "jina_spiece_model": "sentencepiece of XLM-R"}, modules=("jina_clip_2",),
    ),
    "Qwen-Image": Family(".qwen_image:te()", ".qwen_image:QwenImageTokenizer", {"cond": 0}, ("QWEN_IMAGE",)),
    "LongCat-Image": Family(".longcat_image:te()", ".longcat_image:LongCatImageTokenizer", {"cond": 0}, ("LONGCAT_IMAGE",), count=letters),
    "Z-Image": Family(".z_image:te()", ".z_image:ZImageTokenizer", {"cond": 3}),
    "OmniGen2": Family(".omnigen2:te()", ".omnigen2:Omnigen2Tokenizer", {"cond": -1}, ("OMNIGEN2",)),
    "Boogu": Family(".boogu:te()", ".boogu:BooguTokenizer", {"cond": -1}, ("BOOGU",), modules=("qwen3vl",)),
    "Ovis": Family(".ovis:te()", ".ovis:OvisTokenizer", {"cond": 1}, ("OVIS",)),
    "PixelDiT": Family(".pixeldit:pixeldit_te()", ".pixeldit:PixelDiTGemma2Tokenizer", {"cond": -1}, ("PIXELDIT",), data=SPIECE),
    "Anima": Family(".anima:te()", ".anima:AnimaTokenizer", {"cond": 0}, past=("t5xxl_ids",)),
    "ERNIE-Image": Family(".ernie:te()", "odd:ErnieTokenizer", {"cond": 1}),
    "Ideogram 4": Family(".ideogram4:te()", ".ideogram4:Ideogram4Tokenizer", {"cond": 3}, ("IDEOGRAM4",), {"qwen3vl_8b": DEEP}),
    "Ideogram 4 with pictures": Family(".ideogram4:te_qwen3vl()", ".ideogram4:Ideogram4Qwen3VLTokenizer", {"cond": 3}, configs={"qwen3vl_8b": DEEP}),
    "Krea 2": Family(".krea2:te()", ".krea2:Krea2Tokenizer", {"cond": 0}, ("KREA2",), {"qwen3vl_4b": DEEP}),
    "Mage-Flow": Family(".mage_flow:te()", ".mage_flow:MageFlowTokenizer", {"cond": 0}, ("MAGE",)),
    "JoyImage": Family(".joyimage:te()", ".joyimage:JoyImageTokenizer", {"cond": -1}, ("JOYIMAGE",)),
    "Lens": Family("odd:lens()", ".gpt_oss:LensTokenizer", {"cond": -1}, ("LENS",), data={"tokenizer_json": "bpe"}, options=GPT_OSS),
    "Kandinsky 5": Family(".kandinsky5:te()", ".kandinsky5:Kandinsky5Tokenizer", {"cond": -1, **POOLED}, ("KANDINSKY5",)),
    "Kandinsky 5 image": Family(".kandinsky5:te()", ".kandinsky5:Kandinsky5TokenizerImage", {"cond": -1, **POOLED}, ("KANDINSKY5_IMAGE",)),
    "Wan": Family(".wan:te()", ".wan:WanT5Tokenizer", {"cond": 0}, ("WAN",), data=SPIECE),
    "HunyuanVideo": Family(".hunyuan_video:hunyuan_video_clip()", ".hunyuan_video:HunyuanVideoTokenizer", {"cond": -1, **POOLED}, ("HUNYUAN_VIDEO",)),
    "HunyuanVideo 1.5": Family(
        ".hunyuan_image:te()", ".hunyuan_video:HunyuanVideo15Tokenizer", {"cond": -1, "conditioning_byt5small": 6}, ("HUNYUAN_VIDEO_15",), text={"byt5": "Mill"}
    ),
    "LTX-Video": Family(".lt:ltxv_te()", ".lt:LTXVT5Tokenizer", {"cond": 0}, ("LTXV",)),
    "LTX-2": Family("odd:ltx2()", ".lt:LTXAVGemmaTokenizer", {"cond": 1}, data=SPIECE, modules=("lt",)),
    "LTX-2.3": Family("odd:ltx2(text_projection_type='dual_linear')", ".lt:LTXAVGemmaTokenizer", {"cond": 1}, data=SPIECE, modules=("lt",)),
    "Mochi": Family(".genmo:mochi_te()", ".genmo:MochiT5Tokenizer", {"cond": 0}, ("MOCHI",)),
    "CogVideoX": Family(".cogvideo:cogvideo_te()", ".cogvideo:CogVideoXTokenizer", {"cond": 0}, ("COGVIDEOX",)),
    "Cosmos": Family(".cosmos:te()", ".cosmos:CosmosT5Tokenizer", {"cond": 0}, ("COSMOS",)),
    "MiniMax": Family(".minimax:te()", ".minimax:MiniMaxH3Tokenizer", {"cond": 0}, ("MINIMAX",)),
    "Stable Audio": Family(".sa_t5:SAT5Model", ".sa_t5:SAT5Tokenizer", {"cond": 0}, ("STABLE_AUDIO",)),
    "Stable Audio 3": Family("odd:SmallT5Gemma", ".sa3:SAT5GemmaTokenizer", {"cond": 0}, data=SPIECE),
    "ACE-Step": Family(".ace:AceT5Model", ".ace:AceT5Tokenizer", {"cond": 0}, ("ACE",), data=SPIECE),
    "ACE-Step 1.5": Family(".ace15:te(lm_model='qwen3_2b')", "odd:ShortSong", {"cond": -1}, configs={"": LLM}, modules=("ace15",), past=("audio_codes",)),
    "Qwen3-VL": Family(".qwen3vl:te(model_type='qwen3vl_4b')", ".qwen3vl:tokenizer(model_type='qwen3vl_4b')", {"cond": 3}),
    "Qwen3.5": Family(".qwen35:te(model_type='qwen35_2b')", ".qwen35:tokenizer(model_type='qwen35_2b')", {"cond": 3}, configs={"qwen35_2b": LLM}),
    "an unknown encoder": Family("odd:Model", "odd:Tokenizer", {"cond": 1, "scene_states": 0, "style_vector": None}),
}  # fmt: skip


class NotHere(Exception):
    """This ComfyUI has no such encoder."""


def small_t5gemma() -> Any:
    """Stable Audio 3's encoder, whose size is written into its class."""
    sa3 = importlib.import_module("comfy.text_encoders.sa3")

    class Config(sa3.T5GemmaEncoderConfig):
        def __init__(self):
            super().__init__()
            self.hidden_size, self.intermediate_size, self.num_hidden_layers = 64, 128, 2
            self.num_attention_heads = self.num_key_value_heads = 4
            self.head_dim, self.layer_types = 16, ["sliding_attention", "full_attention"]

    class Model(sa3.T5GemmaModel):
        def __init__(self, config_dict, dtype, device, operations):
            import torch

            torch.nn.Module.__init__(self)
            self.num_layers, self.dtype = 2, dtype
            self.model = sa3.T5GemmaBody(Config(), device, dtype, operations)

    class Encoder(sa3.T5GemmaSDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            import comfy.sd1_clip

            comfy.sd1_clip.SDClipModel.__init__(
                self, device=device, textmodel_json_config={}, dtype=dtype, special_tokens={"pad": 0}, model_class=Model,
                enable_attention_masks=True, zero_out_masked=True, model_options=model_options,
            )  # fmt: skip

    class SmallT5Gemma(sa3.SAT5GemmaModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            import comfy.sd1_clip

            comfy.sd1_clip.SD1ClipModel.__init__(
                self, device=device, dtype=dtype, name="t5gemma", clip_model=Encoder, model_options=model_options
            )

    return SmallT5Gemma


def ltx2(**arguments: Any) -> Any:
    """LTX-2's encoder; the width and number of the layers that it joins are written into its class."""
    lt = importlib.import_module("comfy.text_encoders.lt")

    class SmallLTX2(lt.ltxav_te(**arguments)):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            super().__init__(device=device, dtype=dtype, model_options={**model_options, "_model_config": LLM})
            operations, joined = self.gemma3_12b.operations, 64 * (LLM["num_hidden_layers"] + 1)
            self.execution_device = None
            if self.text_projection_type == "dual_linear":
                self.text_embedding_projection = lt.DualLinearProjection(joined, 64, 32, dtype=dtype, device=device, operations=operations)
            else:
                self.text_embedding_projection = operations.Linear(joined, 64, bias=False, dtype=dtype, device=device)

    return SmallLTX2


def short_song() -> Any:
    """ACE-Step 1.5's tokenizer, for songs of two seconds: its language model writes five tokens for each."""

    class ShortSong(_attribute("comfy.text_encoders.ace15", "ACE15Tokenizer")):
        def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
            return super().tokenize_with_weights(text, return_word_ids, duration=2, **kwargs)

    return ShortSong


def lens() -> Any:
    """Lens's encoder: what may be quantised has no weights until it is loaded."""
    gpt_oss = importlib.import_module("comfy.text_encoders.gpt_oss")

    class SmallLens(gpt_oss.lens_te()):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            import torch

            super().__init__(device=device, dtype=dtype, model_options=model_options)
            weights = {
                f"{name}.weight": torch.empty(module._orig_shape, dtype=dtype)
                for name, module in self.named_modules()
                if hasattr(module, "_orig_shape")
            }
            self.load_state_dict(weights, strict=False, assign=True)

    return SmallLens


def unknown_encoder(name: str) -> Any:
    """An encoder that nobody has seen: two tokenizers, two tensors with names and shapes of their own."""
    import comfy.sd1_clip
    import torch
    from comfy.text_encoders.sd3_clip import T5XXLModel, T5XXLTokenizer

    class Tokenizer:
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            self.clip_l = comfy.sd1_clip.SDTokenizer(
                embedding_directory=embedding_directory, tokenizer_data=tokenizer_data
            )
            self.scene = T5XXLTokenizer(min_length=40)

        def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
            made = {
                "l": self.clip_l.tokenize_with_weights(text, return_word_ids),
                "scene": self.scene.tokenize_with_weights(text, return_word_ids),
            }
            return made | {"note": "not tokens"}

    class Model(torch.nn.Module):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            super().__init__()
            self.clip_l = comfy.sd1_clip.SDClipModel(device=device, dtype=dtype, model_options=model_options)
            self.t5xxl = T5XXLModel(device=device, dtype=dtype, model_options=model_options)
            self.dtypes = {dtype}

        def set_clip_options(self, options):
            self.clip_l.set_clip_options(options)
            self.t5xxl.set_clip_options(options)

        def reset_clip_options(self):
            self.clip_l.reset_clip_options()
            self.t5xxl.reset_clip_options()

        def encode_token_weights(self, tokens):
            cond, pooled = self.clip_l.encode_token_weights(tokens["l"])[:2]
            scene = self.t5xxl.encode_token_weights(tokens["scene"])[0]
            return cond, None, {"scene_states": scene, "style_vector": pooled * 2, "strength": 0.5}

    return {"Model": Model, "Tokenizer": Tokenizer}[name]


def mistral_tokenizer(name: str) -> Any:
    """The tokenizer of FLUX.2 or ERNIE-Image on Llama's vocabulary: its own comes inside the weights, in a format that no
    longer loads everywhere."""
    import comfy.sd1_clip
    from comfy.text_encoders.hunyuan_video import LLAMA3Tokenizer

    module, key = {"Flux2Tokenizer": ("flux", "mistral3_24b"), "ErnieTokenizer": ("ernie", "ministral3_3b")}[name]
    kind = _attribute(f"comfy.text_encoders.{module}", name)

    class Tokens(LLAMA3Tokenizer):
        def __init__(self, **kwargs):
            super().__init__(min_length=1, pad_token=11)
            self.pad_left, self.disable_weights = True, True

    class Tokenizer(kind):
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            comfy.sd1_clip.SD1Tokenizer.__init__(self, name=key, tokenizer=Tokens)
            self.llama_template = (
                "[SYSTEM_PROMPT]You are an AI that reasons about image descriptions.[/SYSTEM_PROMPT][INST] {} [/INST]"
            )

    return Tokenizer


ODD: dict[str, Callable[..., Any]] = {
    "Flux2Tokenizer": lambda: mistral_tokenizer("Flux2Tokenizer"),
    "ErnieTokenizer": lambda: mistral_tokenizer("ErnieTokenizer"),
    "SmallT5Gemma": small_t5gemma,
    "ShortSong": short_song,
    "ltx2": lambda: ltx2,
    "lens": lambda: lens,
    "Model": lambda: unknown_encoder("Model"),
    "Tokenizer": lambda: unknown_encoder("Tokenizer"),
}


def look_up(path: str) -> Any:
    """What a path of a Family names."""
    module, _, name = path.partition(":")
    name, called, arguments = name.partition("(")
    try:
        if module == "odd":
            value = ODD[name]()
        else:
            value = _attribute(f"comfy.text_encoders{module}" if module.startswith(".") else f"comfy.{module}", name)
        return value(**_arguments(arguments)) if called else value
    except ImportError as error:
        raise NotHere(f"this ComfyUI has no {error.name}") from None
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise NotHere(f"{path} takes other arguments here") from None


def _attribute(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    if not hasattr(found, name):
        raise NotHere(f"this ComfyUI has no {module}.{name}")
    return getattr(found, name)


def _arguments(text: str) -> dict[str, Any]:
    call = ast.parse(f"f({text}", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}


def sentencepiece_model(pad: int = 0, eos: int = 1, bos: int = 2) -> Any:
    """A small sentencepiece tokenizer, made here: the real ones come inside the weights."""
    import sentencepiece
    import torch

    from directions.prompts import read_anchors

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([anchor.prompt for anchor in read_anchors()[:600]]), model_writer=out, vocab_size=400,
        pad_id=pad, eos_id=eos, bos_id=bos, unk_id=3, num_threads=1, minloglevel=2,
    )  # fmt: skip
    return torch.frombuffer(bytearray(out.getvalue()), dtype=torch.uint8)


def bpe_model() -> Any:
    """Qwen's vocabulary as a tokenizers file, with the marks of GPT-OSS's template: its own comes inside the weights."""
    import comfy.text_encoders
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    folder = Path(next(iter(comfy.text_encoders.__path__))) / "qwen25_tokenizer"
    model = models.BPE(
        json.loads((folder / "vocab.json").read_text(encoding="utf-8")),
        [
            tuple(line.split())
            for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
            if not line.startswith("#version")
        ],
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(f"<|{mark}|>", special=True) for mark in ("start", "end", "message", "channel")])
    return torch.frombuffer(bytearray(tokenizer.to_str().encode()), dtype=torch.uint8)


DATA: dict[str, Callable[[], Any]] = {
    "sentencepiece": sentencepiece_model,
    "sentencepiece of XLM-R": lambda: sentencepiece_model(pad=1, eos=2, bos=0),
    "bpe": bpe_model,
}


def build(family: Family, dtype: str, embeddings: str | None = None) -> Any:
    """The family as a ComfyUI CLIP with seeded random weights."""
    import comfy.sd
    import torch

    class Target:
        params: dict[str, Any] = {}
        clip = look_up(family.clip)
        tokenizer = look_up(family.tokenizer)

    if not (isinstance(Target.clip, type)):
        raise NotHere(f"{family.clip} gives no class")
    options = {f"{name}_model_config": dict(config) for name, config in (SMALL | family.configs).items()}
    clip = comfy.sd.CLIP(
        Target,
        embedding_directory=embeddings,
        tokenizer_data={key: DATA[value]() if value in DATA else value for key, value in family.data.items()},
        model_options={"dtype": getattr(torch, dtype), **options, **family.options},
    )
    draw_weights(clip.cond_stage_model)
    return clip


def draw_weights(model: Any) -> None:
    """Seeded random weights, in place; what reads pictures keeps what it has."""
    import torch

    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "visual" in name or "logit_scale" in name:
                continue
            if weights.dim() < 2:
                weights.fill_(0.0 if "bias" in name else 1.0)
                continue
            embedding = any(word in name for word in ("embed", "shared")) and "projection" not in name
            scale = (
                0.5 if embedding and "position" not in name else 0.05 if embedding else 0.5 / weights.shape[-1] ** 0.5
            )
            weights.copy_(torch.empty(weights.shape).normal_(generator=draw) * scale)
