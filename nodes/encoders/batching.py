"""Many prompts through a text encoder in few passes, each with the states that it has alone.

A text encoder is one or more language models (ComfyUI's SDClipModel) and code around them that joins, crops and masks what
they return. Every prompt goes through that code by itself; only the language models read ahead: at the first prompt of a
batch they read the whole batch in one pass, and hand the other prompts their own when they come.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Iterator, Mapping, Sequence

import comfy.model_management
import comfy.sd1_clip
import torch
from torch import Tensor

from .clip import unsteered
from .places import encode, slots
from .templates import Tokens, streams

TOKENS = {"cpu": 512}  # that a language model reads in one pass; a CPU gains nothing from more
TOKENS_ELSEWHERE = 8192
ROOM = 2**28  # bytes of states read ahead
CLOSE = 1e-4
RUN = 8
"""As many padding tokens in a row inside a prompt are padding, whatever stands behind them."""

Ids = tuple[int, ...]


class BatchReader:
    """A CLIP that reads prompts in batches, longest first, so that what doesn't fit into memory shows at once.

    Padding is left out where a language model reads the rest the same without it. One that reads a prompt otherwise in a batch
    than alone gets prompts of one length, or one at a time.

    Args:
        clip: the encoder.
        content: what to take from an encoder's output: (tokens, output) -> states by slot.
    """

    def __init__(self, clip: Any, content: Callable[[Tokens, Mapping[str, Any]], dict[str, Tensor]]) -> None:
        self.content = content
        self.clip = unsteered(clip)  # a clone that host mode leaves alone
        self._able = True
        self._ahead: dict[str, dict[Ids, None]] = {}  # by stream, in order
        self._kept: dict[tuple[str, Ids], tuple[tuple, Ids, int | None]] = {}
        self._alone: dict[tuple[str, Ids], tuple] | None = None  # while they are asked, what they return for one prompt
        self._trims: dict[str, bool] = {}  # by language model
        self._pads: set[int] = set()
        self._each = 0.0  # bytes that the language models return for a token
        for name, module in clip.cond_stage_model.named_modules():
            if isinstance(module, comfy.sd1_clip.SDClipModel):
                path, pad = f"{name}.encode".removeprefix("."), module.special_tokens.get("pad")
                read = clip.patcher.get_model_object(path)
                self._pads |= {pad} - {None}
                self.clip.patcher.add_object_patch(path, partial(self._encode, path, read, pad))

    def read(self, tokens: Sequence[Tokens]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Each prompt's index and content: first those that the encoder is asked with how it reads, then the longest first."""
        order = sorted(range(len(tokens)), key=lambda i: self._length(tokens[i]), reverse=True)
        # One in the middle and the shortest: the longest one may be as long as all others together.
        asked = list(dict.fromkeys([order[(len(order) - 1) // 2], order[-1]]))
        self._alone = {}
        outputs = [encode(self.clip, tokens[i]) for i in asked]
        alone = [self.content(tokens[i], output) for i, output in zip(asked, outputs)]
        size = sum(value.nbytes for value in slots(outputs[0]).values()) / self._length(tokens[asked[0]], False)
        limit = TOKENS.get(self.clip.patcher.load_device.type, TOKENS_ELSEWHERE)
        together = list(self._together([tokens[i] for i in asked]))
        self._able, self._alone = all(map(_close, together, alone)), None
        yield from zip(asked, alone)
        order = [i for i in order if i not in asked]
        while order:
            comfy.model_management.throw_exception_if_processing_interrupted()
            length = self._length(tokens[order[0]], all(self._trims.values()))
            each = max(size * self._length(tokens[order[0]], False), self._each * length)
            count = max(1, min(limit // length, int(ROOM // max(each, 1))))
            batch, order = order[:count], order[count:]
            yield from zip(batch, self._together([tokens[i] for i in batch]))

    def _length(self, tokens: Tokens, trimmed: bool = True) -> int:
        """How many tokens the longest stream has; trimmed: less its padding."""
        rows = [tuple(token[0] for section in sections for token in section) for sections in streams(tokens).values()]
        spans = (_needed(ids, next((pad for pad in self._pads if pad in ids), None)) for ids in rows)
        return max(1, *(stop - start for start, stop in spans)) if trimmed else max(1, *map(len, rows))

    def _together(self, batch: Sequence[Tokens]) -> Iterator[dict[str, Tensor]]:
        for tokens in batch if self._able else ():
            for key, sections in streams(tokens).items():
                ids = _ids([[token[0] for token in section] for section in sections])
                if ids:
                    self._ahead.setdefault(key, {})[ids] = None
        try:
            for tokens in batch:
                yield self.content(tokens, encode(self.clip, tokens))
        finally:
            self._forget()

    def _forget(self) -> None:
        self._ahead, self._kept = {}, {}

    def _encode(self, path: str, read: Callable, pad: int | None, sections: Sequence[Sequence[Any]]) -> tuple:
        ids = _ids(sections)
        if ids is None or not self._ahead:
            output = read(sections)
            self._each = max(self._each, _nbytes(output) / max(1, sum(map(len, sections))))
            if ids is not None and self._alone is not None:
                self._alone[path, ids] = output
            return output
        if (path, ids) not in self._kept:
            rows = next((list(rows) for rows in self._ahead.values() if ids in rows), [])
            try:
                self._kept |= {
                    (path, row): (own, row, to) for row, own, to in self._read_ahead(path, read, pad, rows, ids)
                }
            except comfy.model_management.OOM_EXCEPTION:
                comfy.model_management.soft_empty_cache()
                self._able = False
                self._forget()
        # Kept until the batch is over: to a tokenizer without their letters, many prompts are the same.
        part, row, trimmed = self._kept.get((path, ids), (None, ids, None))
        if part is None:
            return read(sections)
        part = _map(part, torch.clone)
        return part if trimmed is None else _restored(part, row, pad, trimmed)

    def _read_ahead(
        self, path: str, read: Callable, pad: int | None, rows: Sequence[Ids], ids: Ids
    ) -> list[tuple[Ids, tuple, int | None]]:
        """Of several prompts what a language model returns, and the length that it was read in, where that was less."""
        alone = lambda row: (self._alone or {}).get((path, row)) or read([list(row)])
        if path not in self._trims and len(rows) > 1 and _length(rows[-1], pad) < _length(rows[0], pad):
            parts, length = _if_alike(read, pad, rows, alone)
            self._trims[path] = bool(parts)
        elif self._trims.get(path):
            parts, length = _read_trimmed(read, pad, rows)
        if self._trims.get(path):
            return [(row, part, length) for row, part in zip(rows, parts)]
        rows = [row for row in rows if len(row) == len(ids)]
        output = read([list(row) for row in rows]) if rows else ()
        parts = _split(output, len(rows)) if len(rows) > 1 else [output]
        return [(row, part, None) for row, part in zip(rows, parts)]


def _ids(sections: Sequence[Sequence[Any]]) -> Ids | None:
    """The token ids of a prompt in one section; None for a long prompt, a weighted one and one with pictures or embeddings."""
    return tuple(sections[0]) if len(sections) == 1 and all(isinstance(token, int) for token in sections[0]) else None


def _needed(ids: Sequence[Any], pad: int | None) -> tuple[int, int]:
    """What of a prompt is no padding, with the first padding token behind it, which may be the end token as well: start, stop."""
    if pad is None:
        return 0, len(ids)
    start, stop = 0, len(ids)
    while start < stop - 1 and ids[start] == pad:
        start += 1
    while stop > start + 1 and ids[stop - 1] == ids[stop - 2] == pad:
        stop -= 1
    run = 0
    for i in range(start, stop):
        run = run + 1 if ids[i] == pad else 0
        if run == RUN:
            return start, i - RUN + 2
    return start, stop


def _length(row: Ids, pad: int | None) -> int:
    start, stop = _needed(row, pad)
    return stop - start


def _if_alike(
    read: Callable, pad: int | None, rows: Sequence[Ids], alone: Callable[[Ids], tuple]
) -> tuple[list[tuple], int]:
    """`_read_trimmed`, or nothing where a language model doesn't give these prompts, of different lengths, the same states then,
    or the shortest by itself: the longest may be as long as all that it takes (CLIP wants all of its 77 tokens)."""
    try:
        parts, length = _read_trimmed(read, pad, rows)
        (short,), own = _read_trimmed(read, pad, rows[-1:])
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, ValueError, IndexError):
        return [], 0
    tried = [(rows[0], parts[0], length), (rows[-1], parts[-1], length), (rows[-1], short, own)]
    alike = (_alike(_restored(part, row, pad, taken), alone(row), _needed(row, pad)) for row, part, taken in tried)
    return (parts, length) if all(alike) else ([], 0)


def _read_trimmed(read: Callable, pad: int | None, rows: Sequence[Ids]) -> tuple[list[tuple], int]:
    """What a language model returns for each of several prompts, read with as little padding as they need, and how many tokens
    each was read in."""
    if pad is None:
        return [], 0
    spans = [row[slice(*_needed(row, pad))] for row in rows]
    length = max(map(len, spans))
    return _split(read([[*own, *[pad] * (length - len(own))] for own in spans]), len(rows)), length


def _restored(part: tuple, row: Ids, pad: int | None, length: int) -> tuple:
    """What was read in so many tokens, as long as the prompt is: zero where it wasn't read."""
    start, _ = _needed(row, pad)
    return _map(part, lambda tensor: _placed(tensor, length, start, len(row)))


def _placed(tensor: Tensor, length: int, start: int, wanted: int) -> Tensor:
    """Cut or fill the token dimension of states [1, T, W], stacked layers [1, L, T, W] or a mask [1, T]; others as they are."""
    axis = tensor.dim() - (2 if tensor.dim() > 2 else 1)
    if tensor.shape[axis] != length or (tensor.dim() == 2 and tensor.is_floating_point()):
        return tensor
    own = tensor.narrow(axis, 0, min(length, wanted - start))
    around = (start, wanted - start - own.shape[axis])
    return torch.nn.functional.pad(own, around if axis == tensor.dim() - 1 else (0, 0, *around))


def _map(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A language model's output (states, pooled, {"attention_mask": ...}) with every tensor changed."""
    if isinstance(output, tuple):
        return tuple(_map(part, change) for part in output)
    if isinstance(output, Mapping):
        return {name: _map(part, change) for name, part in output.items()}
    return change(output) if torch.is_tensor(output) else output


def _split(output: tuple, count: int) -> list[tuple]:
    """The rows of what a language model returned for `count` prompts; none where it isn't one row each."""
    tensors = [
        value
        for part in output
        for value in (part.values() if isinstance(part, Mapping) else [part])
        if torch.is_tensor(value)
    ]
    return (
        [_map(output, lambda t: t[i : i + 1]) for i in range(count)]
        if all(len(tensor) == count for tensor in tensors)
        else []
    )


def _nbytes(output: Any) -> int:
    """Of all tensors that a language model returns."""
    if isinstance(output, (tuple, Mapping)):
        return sum(map(_nbytes, output.values() if isinstance(output, Mapping) else output))
    return output.nbytes if torch.is_tensor(output) else 0


def _alike(one: tuple, other: tuple, needed: tuple[int, int]) -> bool:
    """Whether two readings of a prompt give the same states where there is no padding, and the same pooled state."""
    own = slice(*needed)
    states = all(a.shape == b.shape for a, b in zip(one[:1], other[:1])) and _close(
        {"": one[0][..., own, :]}, {"": other[0][..., own, :]}
    )
    pooled = [output[1] for output in (one, other)]
    return states and (not all(map(torch.is_tensor, pooled)) or _close({"": pooled[0]}, {"": pooled[1]}))


def _close(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether states agree to CLOSE of their size."""
    if any(one[name].shape != other[name].shape for name in other):
        return False
    return all(
        bool((one[name] - other[name]).norm(dim=-1).max() <= CLOSE * other[name].norm(dim=-1).mean()) for name in other
    )
