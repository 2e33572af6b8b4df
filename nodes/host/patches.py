"""Where ComfyUI is made to ask host mode. The pack's one exception to its rule against patching classes: no hook sees a text
that a node encodes with a CLIP of its own, a model that a node samples by itself, or a picture that it decodes. Active in host
mode alone; a test for each place fails when ComfyUI moves it (tests/comfyui/test_host.py).
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import comfy.samplers
import comfy.sd

from ..encoders.clip import is_bare
from .encoding import Encoding
from .pictures import judged
from .sampling import check_batch, guarded
from .server import Host


def apply(host: Host) -> Encoding:
    """Steer where every text is encoded, guard where every sampling run begins, judge where every picture is decoded."""
    encoding = Encoding(host)
    encode, scheduled = comfy.sd.CLIP.encode_from_tokens, comfy.sd.CLIP.encode_from_tokens_scheduled
    sample = comfy.samplers.CFGGuider.sample
    batch = comfy.samplers.calc_cond_batch
    decode, tiled = comfy.sd.VAE.decode, comfy.sd.VAE.decode_tiled

    @wraps(encode)
    def encode_from_tokens(self: Any, tokens: Any, return_pooled: Any = False, return_dict: bool = False) -> Any:
        if is_bare(self):
            return encode(self, tokens, return_pooled=return_pooled, return_dict=return_dict)
        output = encode(self, tokens, return_pooled=return_pooled, return_dict=True)
        cond, extras = encoding.steered(self, tokens, (output["cond"], output))
        if return_dict:
            return {**extras, "cond": cond}
        return (cond, extras.get("pooled_output")) if return_pooled else cond

    @wraps(scheduled)
    def encode_from_tokens_scheduled(self: Any, tokens: Any, *args: Any, **kwargs: Any) -> list:
        found = scheduled(self, tokens, *args, **kwargs)
        return found if is_bare(self) else [list(encoding.steered(self, tokens, (cond, extras))) for cond, extras in found]

    @wraps(sample)
    def guarded_sample(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = self.original_conds
        self.original_conds = guarded(self, host)
        try:
            return sample(self, *args, **kwargs)
        finally:
            self.original_conds = asked

    @wraps(batch)
    def checked_batch(model: Any, conds: list, *args: Any, **kwargs: Any) -> Any:
        check_batch(conds, host)
        return batch(model, conds, *args, **kwargs)

    @wraps(decode)
    def judged_decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        return judged(decode(self, *args, **kwargs), host)

    @wraps(tiled)
    def judged_tiled(self: Any, *args: Any, **kwargs: Any) -> Any:
        return judged(tiled(self, *args, **kwargs), host)

    comfy.sd.VAE.decode, comfy.sd.VAE.decode_tiled = judged_decode, judged_tiled
    comfy.sd.CLIP.encode_from_tokens = encode_from_tokens
    comfy.sd.CLIP.encode_from_tokens_scheduled = encode_from_tokens_scheduled
    comfy.samplers.CFGGuider.sample = guarded_sample
    comfy.samplers.calc_cond_batch = checked_batch
    return encoding
