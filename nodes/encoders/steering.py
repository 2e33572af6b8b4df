"""Steer conditioning: in a list, as a CLIP encodes it, or as it reaches the sampler. One mechanism, three places."""

from __future__ import annotations

import hashlib
import hmac
import inspect
import logging
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple

import comfy.patcher_extension
import torch
from torch import Tensor

from ...directions.encoder import AlignedEncoder, Place
from .layout import Edges, attended, content_of_states, content_of_tokens, edge_positions, find_edges

MARK = "safety_direction"
APPLY, CLIP, GUARD = "Apply Safety Direction", "Safety Direction CLIP", "Safety Direction Guard"
SAMPLED = 64
# Marks are made and checked in one process; nobody outside can know this.
_SECRET = secrets.token_bytes(32)
_log = logging.getLogger("safety_directions")

Entry = tuple[Any, Mapping[str, Any]]  # an element of a conditioning list: states [B, T, W], and what belongs to them


class Refused(ValueError):
    """A prompt scored above the threshold and the node refuses such prompts."""


class StaleAlignment(ValueError):
    """An alignment that was made for another encoder; the message says what to connect."""


class Mark(NamedTuple):
    """What a steered entry carries, so that it isn't steered twice."""

    aligned: AlignedEncoder
    how: Mapping[str, Any]
    verdict: str | None  # why it was flagged, in words
    seal: bytes
    before: Entry  # the entry as it came
    give_back: bool  # whether a Guard may give that back to a negative prompt

    def holds(self, entry: Entry) -> bool:
        """Whether this process made the mark, for these very tensors."""
        return isinstance(self.seal, bytes) and hmac.compare_digest(self.seal, _seal(entry, self.aligned, self.how))

    def __deepcopy__(self, memo: Any) -> "Mark":
        return self

    def __reduce__(self) -> tuple:
        """Nothing is pickled: it means something in this process alone, and nodes that save conditioning read it back without classes."""
        return OrderedDict, ()


def _sha(aligned: AlignedEncoder) -> str:
    return str(aligned.direction.get("sha256"))


def _sample(states: Tensor) -> bytes:
    """Secret columns of every token: steering, and whatever undoes it, changes nearly all of them, and reading all takes longer than steering."""
    draw = torch.Generator().manual_seed(int.from_bytes(_SECRET[:7], "little"))
    columns = torch.randint(states.shape[-1], (SAMPLED,), generator=draw).to(states.device)
    return states.detach().index_select(-1, columns).cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _seal(entry: Entry, aligned: AlignedEncoder, how: Mapping[str, Any]) -> bytes:
    seal = hashlib.blake2b(repr((_sha(aligned), sorted(how.items()))).encode(), key=_SECRET)
    for name in sorted({place.tensor for place in aligned.places.values()}):
        states = _tensor(entry, name)
        if states is not None:
            seal.update(f"{name} {states.dtype} {list(states.shape)}".encode())
            seal.update(_sample(states))
    return seal.digest()


def _tensor(entry: Entry, name: str) -> Tensor | None:
    value = entry[0] if name == "cond" else entry[1].get(name)
    return value if torch.is_tensor(value) else None


def marks(entry: Entry) -> list[Mark]:
    """The entry's marks that hold, latest first."""
    found = entry[1].get(MARK, ())
    return [mark for mark in reversed(found) if isinstance(mark, Mark) and mark.holds(entry)] if isinstance(found, tuple) else []


def check_entry(entry: Entry, aligned: AlignedEncoder) -> None:
    """Raise ValueError when an alignment doesn't fit a conditioning entry; says what was expected and found."""
    cond = entry[0]
    if not torch.is_tensor(cond) or cond.dim() != 3:
        raise ValueError("this conditioning holds no text states [batch, tokens, width]; connect the output of a text encode node")
    if cond.shape[1] == 0:
        raise ValueError("this conditioning has no tokens")
    width = next((place.columns for place in aligned.places.values() if place.tensor == "cond"), 0)
    if cond.shape[-1] != width:
        raise StaleAlignment(
            f"this conditioning is {cond.shape[-1]} wide and the alignment is for an encoder {width} wide: "
            "connect Align Safety Direction to the CLIP that encoded the prompt"
        )


def select(tensor: Tensor, place: Place) -> Tensor:
    """A slot's states as a view of its tensor, [B, T, W]; T is 1 for a pooled slot."""
    if tensor.shape[-1] != place.columns or tensor.dim() != (2 if not place.length else 3 if place.layer is None else 4):
        raise ValueError(
            f"this conditioning's {place.tensor} has shape {list(tensor.shape)} and the alignment is for one {place.columns} wide: "
            "connect Align Safety Direction to the CLIP that encoded the prompt"
        )
    if not place.length:
        return tensor.unsqueeze(1)
    return (tensor if place.layer is None else tensor[:, place.layer])[..., : place.width]


def slot_content(entry: Entry, aligned: AlignedEncoder, name: str) -> Tensor | None:
    """The content of a slot, bool [B, T], from its states; None (all) for a pooled slot."""
    place = aligned.places[name]
    tensor = _tensor(entry, place.tensor)
    return content_of_states(tensor, place, entry[1], aligned.padding.get(name)) if place.length and tensor is not None else None


@dataclass(frozen=True)
class Steering:
    """One node's settings.

    Attributes:
        node: its name, for messages.
        aligned: the direction, fitted to the encoder.
        how: arguments for `AlignedDirection.steer`.
        on_flag: "steer" or "refuse".
    """

    node: str
    aligned: AlignedEncoder
    how: Mapping[str, Any]
    on_flag: str = "steer"

    def __call__(self, entry: Entry, masks: Mapping[str, Tensor] | None = None, give_back: bool = False) -> Entry:
        """The entry, steered and marked.

        Args:
            masks: the content of the slots, bool [T], where the tokens are known; else it is read from the states.

        Raises:
            Refused: it is flagged and `on_flag` says so.
            ValueError: it doesn't fit the alignment; says what was expected and found.
        """
        check_entry(entry, self.aligned)
        verdict = None
        changed: dict[str, Tensor] = {}
        for name, slot in self.aligned.slots.items():
            place = self.aligned.places[name]
            before = _tensor(entry, place.tensor)
            if before is None:
                continue
            # Two slots may share a tensor: the second goes on from the first.
            after = changed.setdefault(place.tensor, before.clone())
            states = select(after, place)
            mask = slot_content(entry, self.aligned, name) if masks is None or name not in masks else masks[name].to(states.device)
            # Only the prompt's own tokens are read and moved; a padded tensor has ten times as many.
            content = torch.arange(states.shape[1]) if mask is None else mask.reshape(-1, states.shape[1]).any(0).nonzero().flatten()
            if not len(content):
                continue
            content = content.to(states.device)
            own_mask = None if mask is None else mask[..., content]
            own = states[:, content]
            if not torch.isfinite(own.float().sum()):  # a sum is quicker, and no sum of states overflows
                raise ValueError(f"this conditioning's {name} has NaN or infinite values: its text encoder overflowed; load it in another precision")
            verdict = verdict or self._verdict(name, own, own_mask)
            moved = slot.steer(own, mask=own_mask, **self.how)
            states[:, content] = moved
            if name in self.aligned.edges and self.how["mode"] == "gate" and mask is not None:
                self._land_edges(name, entry, states, mask.expand(len(states), -1).cpu(), (moved != own).flatten(1).any(1))
        self.judge(verdict)
        steered = (changed.pop("cond", entry[0]), {**entry[1], **changed})
        mark = Mark(self.aligned, self.how, verdict, _seal(steered, self.aligned, self.how), entry, give_back)
        steered[1][MARK] = (*(m for m in entry[1].get(MARK, ()) if isinstance(m, Mark)), mark)
        return steered

    def _land_edges(self, name: str, entry: Entry, states: Tensor, content: Tensor, steered: Tensor) -> None:
        """Start, end and padding of the prompts that the gate steered, in place: states [B, T, W], content [B, T], steered [B]."""
        tensor, place = _tensor(entry, self.aligned.places[name].tensor), self.aligned.places[name]
        if tensor is None or not steered.any():
            return
        seen = attended(tensor, place, entry[1])
        for row in steered.nonzero().flatten().tolist():
            positions = edge_positions(content[row], seen[row], place)
            states[row] = self.aligned.edges[name].land(states[row], content[row].to(states.device), positions)

    def judge(self, verdict: str | None) -> None:
        """Log a verdict, and raise Refused if that is what the node does."""
        if verdict is None:
            return
        _log.info("%s: %s, %s", self.node, verdict, "refused" if self.on_flag == "refuse" else f"steered ({self.how['mode']})")
        if self.on_flag == "refuse":
            raise Refused(f"{self.node} refused this prompt: {verdict}. Nothing was sampled. Change the prompt, or set on_flag to steer.")

    def _verdict(self, name: str, states: Tensor, mask: Tensor | None) -> str | None:
        slot, budget = self.aligned.slots[name], self.how["budget"]
        names = self.how["categories"] or ["global"]
        if not bool(slot.flagged(states, budget, names, mask).any()):
            return None
        over = {n: (slot.prompt_score(states, n, mask).max().item(), slot.threshold(budget / len(names), n)) for n in names}
        worst = max(over, key=lambda n: over[n][0] - over[n][1])
        score, threshold = over[worst]
        return f"{worst} score {score:+.2f} in {name}, over the threshold {threshold:+.2f} at a budget of {budget:.1%}"


def steer_conditioning(
    conditioning: list, aligned: AlignedEncoder, how: Mapping[str, Any], start: float = 0.0, end: float = 1.0, on_flag: str = "steer"
) -> list:
    """Steer every entry of a conditioning list; what this direction already steered passes as it is.

    With a range inside [0, 1] each entry is split in time: steered within, as it was outside.

    Raises:
        Refused: an entry is flagged and `on_flag` is "refuse".
        ValueError: the conditioning doesn't fit the alignment; says what was expected and found.
    """
    if start >= end:
        raise ValueError(f"start_percent {start} is not before end_percent {end}")
    steering = Steering(APPLY, aligned, how, on_flag)
    out = []
    for cond, extras in conditioning:
        entry: Entry = (cond, extras)
        before = _same_direction(entry, aligned)
        if before:
            steering.judge(before.verdict)
            out.append([cond, extras])
            continue
        steered = steering(entry)
        low, high = extras.get("start_percent", 0.0), extras.get("end_percent", 1.0)
        for begin, stop, (states, info) in ((low, min(start, high), entry), (max(low, start), min(end, high), steered), (max(end, low), high, entry)):
            if begin < stop or (low, high) == (begin, stop):
                ranged = {} if (begin, stop) == (0.0, 1.0) else {"start_percent": begin, "end_percent": stop}
                out.append([states, {**info, **ranged}])
    return out


def is_steered(conditioning: list, aligned: AlignedEncoder) -> bool:
    """Whether the direction of `aligned` already steered an entry of a conditioning list."""
    return any(_same_direction((cond, extras), aligned) is not None for cond, extras in conditioning)


def before_steering(entry: Entry, aligned: AlignedEncoder) -> Entry | None:
    """The entry as it was before it was steered by the direction of `aligned`; None where it wasn't."""
    mark = _same_direction(entry, aligned)
    return mark.before if mark else None


def _same_direction(entry: Entry, aligned: AlignedEncoder) -> Mark | None:
    return next((mark for mark in marks(entry) if _sha(mark.aligned) == _sha(aligned)), None)


class _SteeredEncode:
    """A text encoder's `encode_token_weights`, steered."""

    def __init__(self, inner: Callable, steering: Steering, edges: Mapping[str, Edges]) -> None:
        self.inner = inner
        self.steering = steering
        self.edges = edges

    def __call__(self, tokens: Any, *args, **kwargs) -> tuple:
        cond, pooled, *rest = self.inner(tokens, *args, **kwargs)
        found = {**(rest[0] if rest else {}), "pooled_output": pooled}
        masks = content_of_tokens(tokens, self.steering.aligned.places, self.edges, {**found, "cond": cond})
        cond, steered = self.steering((cond, found), masks, give_back=True)
        extras = dict(steered)
        return cond, extras.pop("pooled_output"), extras, *rest[1:]


def steer_clip(clip: Any, aligned: AlignedEncoder, how: Mapping[str, Any], on_flag: str = "steer") -> Any:
    """A clone of a CLIP that steers what it encodes; the same direction's earlier steering is replaced.

    Raises:
        ValueError: no CLIP.
    """
    _check_clip(clip)
    inner = clip.patcher.get_model_object("encode_token_weights")
    if isinstance(inner, _SteeredEncode) and _sha(inner.steering.aligned) == _sha(aligned):
        inner = inner.inner
    steered = clip.clone()
    steered.patcher.add_object_patch("encode_token_weights", _SteeredEncode(inner, Steering(CLIP, aligned, how, on_flag), find_edges(clip)))
    return steered


def unsteered(clip: Any) -> Any:
    """The CLIP without any steering of ours, so that aligning never measures what was steered."""
    _check_clip(clip)
    inner = clip.patcher.get_model_object("encode_token_weights")
    if not isinstance(inner, _SteeredEncode):
        return clip
    while isinstance(inner, _SteeredEncode):
        inner = inner.inner
    plain = clip.clone()
    plain.patcher.add_object_patch("encode_token_weights", inner)
    return plain


def _check_clip(clip: Any) -> None:
    if clip is None:
        raise ValueError("no CLIP: this checkpoint has no text encoder; load one and connect it")


def guard_model(
    model: Any, aligned: AlignedEncoder | None, how: Mapping[str, Any], side: str = "positive", on_flag: str = "steer", strict: bool = False
) -> Any:
    """A clone of a MODEL that steers the conditioning of every sampling run.

    Args:
        aligned: for conditioning that carries no alignment of its own (see `Mark`).
        side: "positive" (and the negative side below cfg 1, where it is what gets generated) or "both".
        strict: let only conditioning pass that was steered with these very settings, and steer the negative side too where
            other code than ComfyUI's own formula weighs it.
    """

    def sample(executor: Any, *args, **kwargs) -> Any:
        guider = executor.class_obj
        guarded = side == "both" or not _cfg(guider) >= 1
        weighed = strict and _weighs_otherwise(guider)
        for name, conds in guider.conds.items():
            avoided = name == "negative" and not guarded  # PerpNegGuider's "empty_negative_prompt" is drawn towards
            act = _give_back if avoided and not weighed else _guard_entry
            # What may be meant as a negative prompt is steered, but no reason to refuse.
            flag = "steer" if avoided else on_flag
            guider.conds[name] = [_as_cond(act(_as_entry(cond), aligned, how, flag, strict)) for cond in conds]
        return executor(*args, **kwargs)

    key = "safety_direction" + (".strict" if strict else "")
    guarded_model = model.clone()
    guarded_model.remove_wrappers_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, key)
    guarded_model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, key, sample)
    return guarded_model


def _cfg(guider: Any) -> float:
    """The lowest of a guider's scales; below 1 the negative side is generated rather than avoided."""
    return min(getattr(guider, name, 1.0) for name in ("cfg", "cfg1", "cfg2"))


def _weighs_otherwise(guider: Any) -> bool:
    """Whether a model patch or a guider from another pack has a say in how much the negative side counts.

    Some of ComfyUI's own patches can turn it into what is generated: CFGOverride, VideoLinearCFGGuidance, FreSca,
    LatentApplyOperationCFG.
    """
    options = guider.model_options
    wrapped = any(
        comfy.patcher_extension.get_all_wrappers(kind, options, is_model_options=True)
        for kind in (comfy.patcher_extension.WrappersMP.PREDICT_NOISE, comfy.patcher_extension.WrappersMP.CALC_COND_BATCH)
    )
    comfyui = Path(comfy.patcher_extension.__file__).resolve().parents[1]
    home = Path(inspect.getfile(type(guider))).resolve()
    own = any(home.is_relative_to(comfyui / folder) for folder in ("comfy", "comfy_extras"))
    return wrapped or not own or any(key.startswith("sampler_") and options[key] for key in options)


# A guider keeps the states inside the dict.
def _as_entry(cond: Mapping[str, Any]) -> Entry:
    return cond.get("cross_attn"), cond


def _as_cond(entry: Entry) -> Mapping[str, Any]:
    return entry[1] if entry[0] is None else {**entry[1], "cross_attn": entry[0]}


def _guard_entry(entry: Entry, aligned: AlignedEncoder | None, how: Mapping[str, Any], on_flag: str, strict: bool) -> Entry:
    carried = [mark for mark in entry[1].get(MARK, ()) if isinstance(mark, Mark)]
    fitted = carried[-1].aligned if carried else aligned
    if fitted is None:
        raise ValueError(
            f"{GUARD}: a conditioning that reaches the sampler carries no alignment. Connect Align Safety Direction to the Guard, "
            "or encode the prompts with a Safety Direction CLIP. (A model that takes no text can't be guarded.)"
        )
    steering = Steering(GUARD, fitted, how, on_flag)
    for mark in carried:  # also where the states have changed since
        steering.judge(mark.verdict)
    if any(_sha(mark.aligned) == _sha(fitted) and (mark.how == how or not strict) for mark in marks(entry)):
        return entry
    try:
        return steering(entry)
    except Refused:
        raise
    except ValueError as error:
        raise type(error)(f"{GUARD}: {error}") from None


def _give_back(entry: Entry, *_: Any) -> Entry:
    """A negative prompt as it was encoded: steered by a CLIP it would have lost its force."""
    for mark in marks(entry):
        if mark.give_back:
            cond, extras = mark.before
            return cond, {**entry[1], **{place.tensor: extras[place.tensor] for place in mark.aligned.places.values() if place.tensor in extras}}
    return entry
