"""Read the hidden states of a source model: any causal language model that transformers can load."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

Progress = Callable[[Iterable, int, str], Iterable]


def quiet(items: Iterable, total: int, label: str) -> Iterable:
    """The progress reporter that reports nothing."""
    return items


def terminal(items: Iterable, total: int, label: str) -> Iterable:
    """A tqdm bar in the terminal."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, unit="batch")


def load_source(path: str | Path, device_map: str | None = None):
    """Load a local Hugging Face folder or a GGUF file as `(model, tokenizer)`, in float32 on the CPU.

    Nothing is downloaded and no code from the folder is run (`trust_remote_code` stays off).
    `device_map` is handed to transformers, which splits and offloads big models through accelerate.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ImportError: an optional package is missing; the message names the install command.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no source model at {path}: give a local Hugging Face folder or a .gguf file")
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError("estimating needs transformers: pip install transformers") from error
    where: dict = {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if path.suffix == ".gguf":
        try:
            import gguf  # noqa: F401  (transformers reads GGUF through it and fails without a hint)
        except ImportError as error:
            raise ImportError("reading a GGUF file needs two packages: pip install gguf accelerate") from error
        where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    dtype = "auto" if device_map else torch.float32
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=dtype, device_map=device_map, low_cpu_mem_usage=True)
    return model.eval().requires_grad_(False), tokenizer


def weights_hash(path: str | Path) -> str:
    """SHA-256 over the model's weight files (a GGUF, or the folder's *.safetensors in name order)."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"no *.safetensors in {path}: pickled weights (*.bin) are not read")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def token_ids(tokenizer, prompt: str, max_tokens: int = 512) -> list[int]:
    """The prompt's token ids behind one start token, which takes the attention sink and is never pooled."""
    ids = tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=max_tokens)["input_ids"]
    if not ids:
        raise ValueError(f"the prompt {prompt!r} has no tokens")
    start = next((t for t in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id) if t is not None), ids[0])
    return [start, *ids]


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices grouped by similar length, so that padding stays small; every index comes once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def pooled_states(
    model, tokenizer, prompts: Sequence[str], layers: Sequence[int], tokens_per_batch: int = 1024, progress: Progress = quiet
) -> Tensor:
    """Mean hidden state of each prompt's tokens, for several layers at once.

    Layer 0 is the embedding, layer L the output of the L-th block.

    Returns:
        float32 [prompts, len(layers), width]
    """
    ids = [token_ids(tokenizer, prompt) for prompt in prompts]
    batches = list(length_batches([len(i) for i in ids], tokens_per_batch))
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    with _only_blocks(body, max(layers) + 1):
        return _pooled(model, body, ids, batches, layers, progress)


@contextmanager
def _only_blocks(body, count: int) -> Iterator[None]:
    """Leave out the blocks behind the last layer that is wanted; one more stays, because the last output is normalised."""
    blocks = getattr(body, "layers", None)
    if not isinstance(blocks, torch.nn.ModuleList) or len(blocks) <= count:
        yield
        return
    body.layers = blocks[:count]
    try:
        yield
    finally:
        body.layers = blocks


def _pooled(model, body, ids: list[list[int]], batches: list[list[int]], layers: Sequence[int], progress: Progress) -> Tensor:
    out: Tensor | None = None
    for batch in progress(batches, len(batches), "reading the source model"):
        width = max(len(ids[i]) for i in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, i in enumerate(batch):
            tokens[row, : len(ids[i])] = torch.tensor(ids[i])
            mask[row, : len(ids[i])] = 1
        device = model.get_input_embeddings().weight.device
        hidden = body(
            input_ids=tokens.to(device), attention_mask=mask.to(device), output_hidden_states=True, use_cache=False
        ).hidden_states
        content = mask.clone()
        content[:, 0] = 0
        for column, layer in enumerate(layers):
            states = hidden[layer].float()
            weight = content.to(states.device).unsqueeze(-1)
            pooled = ((states * weight).sum(1) / weight.sum(1)).cpu()
            if out is None:
                out = torch.empty(len(ids), len(layers), pooled.shape[-1])
            out[torch.tensor(batch), column] = pooled
    assert out is not None, "no prompts"
    return out
