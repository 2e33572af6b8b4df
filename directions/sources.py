"""Read the hidden states of a source model, any causal language model that transformers can load, or of a text encoder."""

from __future__ import annotations

import hashlib
import importlib.util
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from . import files

Progress = Callable[[Iterable, int, str], Iterable]


def quiet(items: Iterable, total: int, label: str) -> Iterable:
    """The progress reporter that reports nothing."""
    return items


def terminal(items: Iterable, total: int, label: str) -> Iterable:
    """A tqdm bar in the terminal."""
    from tqdm import tqdm

    return tqdm(items, total=total, desc=label, unit="batch")


def load_source(path: str | Path, device_map: Any = None, offload_folder: str | Path | None = None) -> tuple[Any, Any]:
    """Load a local Hugging Face folder or a GGUF file as `(model, tokenizer)`, in float32 on the CPU.

    Nothing is downloaded and no code from the folder is run (`trust_remote_code` stays off).

    Args:
        device_map: handed to transformers, which splits and offloads big models through accelerate: "auto", or a
            device per module.
        offload_folder: where accelerate puts the weights that fit into no device's memory.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ImportError: an optional package is missing; the message names the install command.
    """
    from_file = _local(path, "source model")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**from_file)
    dtype = "auto" if device_map else torch.float32
    model = AutoModelForCausalLM.from_pretrained(
        **from_file, dtype=dtype, device_map=device_map, low_cpu_mem_usage=True, **_offload(offload_folder)
    )
    return model.eval().requires_grad_(False), tokenizer


def load_encoder(path: str | Path) -> tuple[Any, Any]:
    """Load a local text encoder (CLIP, T5, BERT, a language model, ...) as `(model, tokenizer)`, in float32 on the CPU.

    Raises:
        FileNotFoundError, ImportError: as `load_source`.
    """
    from_file = _local(path, "text encoder")
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(**from_file)
    model = AutoModel.from_pretrained(**from_file, dtype=torch.float32)
    if hasattr(model, "text_model") and model.config.model_type.startswith("clip"):
        model = model.text_model
    elif getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return model.eval().requires_grad_(False), tokenizer


def _local(path: str | Path, what: str) -> dict[str, Any]:
    """Arguments for transformers' `from_pretrained` that read a local folder or GGUF file and nothing else."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no {what} at {path}: give a local Hugging Face folder or a .gguf file")
    if importlib.util.find_spec("transformers") is None:
        raise ImportError(f"reading a {what} needs transformers: pip install transformers")
    if path.suffix != ".gguf":
        return {"pretrained_model_name_or_path": str(path), "local_files_only": True}
    if importlib.util.find_spec("gguf") is None:  # transformers reads GGUF through it and fails without a hint
        raise ImportError("reading a GGUF file needs two packages: pip install gguf accelerate")
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name, "local_files_only": True}


def _offload(folder: str | Path | None) -> dict[str, Any]:
    return {} if folder is None else {"offload_folder": str(folder)}


def weights_hash(path: str | Path) -> str:
    """SHA-256 over the model's weight files (a GGUF, or the folder's *.safetensors in name order)."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no source model at {path}: give a local Hugging Face folder or a .gguf file")
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
    start = next(
        (t for t in (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id) if t is not None), ids[0]
    )
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
def encoder_states(
    model, tokenizer, prompts: Sequence[str], tokens_per_batch: int = 1024, max_tokens: int = 512
) -> list[Tensor]:
    """A text encoder's last states on each prompt's own tokens, without those that its tokenizer adds: float32 [T_i,
    W], in order."""
    limit = min(max_tokens, tokenizer.model_max_length)
    rows = [tokenizer(prompt, truncation=True, max_length=limit, return_special_tokens_mask=True) for prompt in prompts]
    out: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in length_batches([len(row["input_ids"]) for row in rows], tokens_per_batch):
        tokens, mask = _padded([rows[i]["input_ids"] for i in batch])
        states = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
        for row, i in enumerate(batch):
            own = torch.tensor(rows[i]["special_tokens_mask"]) == 0
            content = states[row, : len(own)]
            out[i] = content[own].clone() if own.any() else content.clone()
    return out


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [rows, longest], padded on the right with 0."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True), mask


@torch.inference_mode()
def pooled_states(
    model,
    tokenizer,
    prompts: Sequence[str],
    layers: Sequence[int],
    tokens_per_batch: int = 1024,
    progress: Progress = quiet,
    keep: Path | None = None,
) -> Tensor:
    """Mean hidden state of each prompt's tokens, for several layers at once.

    Layer 0 is the embedding, layer L the output of the L-th block.

    Args:
        keep: a folder for what each batch gives, of one model; what is there is not read again, so that a killed run goes on.

    Returns:
        float32 [prompts, len(layers), width]
    """

    def pooled(hidden: Sequence[Tensor], mask: Tensor) -> Tensor:
        means = []
        for layer in layers:
            states = hidden[layer].float()
            weight = mask.to(states.device).unsqueeze(-1)
            means.append(((states * weight).sum(1) / weight.sum(1)).cpu())
        return torch.stack(means, 1)

    ids = [token_ids(tokenizer, prompt) for prompt in prompts]
    out: Tensor | None = None
    for batch, states in _read(model, ids, layers, tokens_per_batch, progress, pooled, keep):
        if out is None:
            out = torch.empty(len(ids), *states.shape[1:])
        out[torch.tensor(batch)] = states
    assert out is not None, "no prompts"
    return out


@torch.inference_mode()
def token_states(
    model,
    tokenizer,
    prompts: Sequence[str],
    layers: Sequence[int],
    tokens_per_batch: int = 1024,
    progress: Progress = quiet,
    keep: Path | None = None,
) -> list[Tensor]:
    """Hidden states of each prompt's own tokens, the layers concatenated.

    Args:
        keep: as in `pooled_states`.

    Returns:
        float16 [tokens, len(layers) * width] for each prompt; beyond float16's range clipped.
    """
    limit = torch.finfo(torch.float16).max

    def joined(hidden: Sequence[Tensor], mask: Tensor) -> Tensor:
        return torch.cat([hidden[layer].float().cpu() for layer in layers], -1).clamp(-limit, limit).half()

    ids = [token_ids(tokenizer, prompt) for prompt in prompts]
    out: list[Tensor] = [torch.empty(0)] * len(ids)
    for batch, states in _read(model, ids, layers, tokens_per_batch, progress, joined, keep):
        for row, i in enumerate(batch):
            out[i] = states[row, 1 : len(ids[i])].clone()
    return out


def _read(
    model,
    ids: Sequence[list[int]],
    layers: Sequence[int],
    tokens_per_batch: int,
    progress: Progress,
    take: Callable[[Sequence[Tensor], Tensor], Tensor],
    keep: Path | None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Each batch, and what `take` makes of its hidden states by layer [batch, T, width] and of where its own tokens
    are [batch, T]."""
    batches = list(length_batches([len(i) for i in ids], tokens_per_batch))
    body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    with _only_blocks(body, max(layers) + 1):
        for batch in progress(batches, len(batches), "reading the source model"):
            rows = [ids[i] for i in batch]
            name = hashlib.sha256(repr((take.__name__, rows, list(layers))).encode()).hexdigest()[:32]
            path = None if keep is None else keep / f"{name}.safetensors"
            states = None if path is None else _kept(path)
            if states is None:
                tokens, mask = _padded(rows)
                # Offloaded weights lie on no device; accelerate's hooks bring them, and the tokens, to where they run.
                device = model.get_input_embeddings().weight.device
                device = torch.device("cpu") if device.type == "meta" else device
                hidden = body(
                    input_ids=tokens.to(device),
                    attention_mask=mask.to(device),
                    output_hidden_states=True,
                    use_cache=False,
                ).hidden_states
                mask[:, 0] = 0
                states = take(hidden, mask)
                if path is not None:
                    _keep(path, states)
            yield batch, states


def _kept(path: Path) -> Tensor | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)["states"]
    except (OSError, SafetensorError, KeyError):
        return None


def _keep(path: Path, states: Tensor) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(path, save({"states": states.contiguous()}))


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
