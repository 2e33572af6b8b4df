"""A node pack for tests: stand-ins with the sockets and habits of popular packs, and none of their code.

Each is named for what it does; which packs do so stands in docs/hosting.md.
"""

import copy
import re

import torch

import nodes

STEPS = (2.0, "euler", "normal")
_LOADED = {}


class Equal(str):
    """A socket type that equals everything."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False


ANY = Equal("*")
TEXT, PIPE, DICT = ("STRING", {"multiline": True}), ("BASIC_PIPE",), ("PIPE_LINE",)
MODEL, CLIP, VAE, CONDITIONING, LATENT = (("MODEL",), ("CLIP",), ("VAE",), ("CONDITIONING",), ("LATENT",))


def loaded():
    """A checkpoint that a pack loads by itself and keeps for later."""
    if not _LOADED:
        _LOADED["all"] = nodes.NODE_CLASS_MAPPINGS["TinyCheckpoint"].execute("stand-in").args
    return _LOADED["all"]


def encoded(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def old_way(clip, text):
    """As packs of the first years encode."""
    cond, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[cond, {"pooled_output": pooled}]]


def sampled(model, positive, negative, latent):
    return nodes.common_ksampler(model, 1, 1, *STEPS, positive, negative, latent)[0]


def node(outputs, **inputs):
    """A node of one function, as its first line would have it."""

    def make(function):
        optional = {name[1:]: kind for name, kind in inputs.items() if name.startswith("_")}
        required = {name: kind for name, kind in inputs.items() if not name.startswith("_")}
        types = {"required": required, "optional": optional}
        own = {
            "INPUT_TYPES": classmethod(lambda cls: types),
            "RETURN_TYPES": outputs,
            "FUNCTION": "run",
            "CATEGORY": "testing",
            "run": lambda self, **given: function(**given),
            "__doc__": function.__doc__,
        }
        NODE_CLASS_MAPPINGS[function.__name__] = type(function.__name__, (), own)
        return function

    return make


NODE_CLASS_MAPPINGS = {}


@node(("BASIC_PIPE",), model=MODEL, clip=CLIP, vae=VAE, positive=CONDITIONING, negative=CONDITIONING)
def ToPipe(model, clip, vae, positive, negative):
    """Everything in one wire."""
    return ((model, clip, vae, positive, negative),)


@node(("MODEL", "CLIP", "VAE", "CONDITIONING", "CONDITIONING"), pipe=PIPE)
def FromPipe(pipe):
    return pipe


@node(("LATENT",), pipe=PIPE, latent=LATENT)
def PipeSampler(pipe, latent):
    """Samples with what is in the wire."""
    model, _, _, positive, negative = pipe
    return (sampled(model, positive, negative, latent),)


@node(("PIPE_LINE",), positive=TEXT, negative=TEXT)
def PipeLoader(positive, negative):
    """Loads and encodes by itself, and gives a wire that holds it all."""
    model, clip, _ = loaded()
    return ({"model": model, "clip": clip, "positive": old_way(clip, positive), "negative": old_way(clip, negative)},)


@node(("PIPE_LINE",), pipe=DICT, positive=TEXT)
def PipeEdit(pipe, positive):
    """Encodes anew with the CLIP in the wire."""
    return ({**pipe, "positive": encoded(pipe["clip"], positive)},)


@node(("LATENT",), pipe=DICT, latent=LATENT)
def PreSampler(pipe, latent):
    return (sampled(pipe["model"], pipe["positive"], pipe["negative"], latent),)


@node(("MODEL", "CONDITIONING", "CONDITIONING", "CLIP"), positive=TEXT, negative=TEXT)
def FullLoader(positive, negative):
    """Loads and encodes by itself."""
    model, clip, _ = loaded()
    return (model, encoded(clip, positive), encoded(clip, negative), clip)


@node(("LATENT",), model=MODEL, clip=CLIP, negative=CONDITIONING, latent=LATENT, texts=TEXT)
def Plot(model, clip, negative, latent, texts):
    """Encodes and samples a picture for every line."""
    rows = [sampled(model, encoded(clip, text), negative, latent)["samples"] for text in texts.splitlines()]
    return ({"samples": torch.cat(rows)},)


@node((ANY,), _first=(ANY,), _second=(ANY,))
def AnySwitch(first=None, second=None):
    """The first that is connected."""
    return (second if first is None else first,)


@node(("STRING",), texts=TEXT)
def Lines(texts):
    """A list of texts, which makes every node behind it run once for each."""
    return (texts.splitlines(),)


NODE_CLASS_MAPPINGS["Lines"].OUTPUT_IS_LIST = (True,)


class Token(tuple):
    """A token of a pack's own."""


@node(("CONDITIONING",), clip=CLIP, text=TEXT)
def OwnTokens(clip, text):
    """Reads weights and [before:after:when] by itself, and tokenizes the parts one by one."""
    before, after, when = re.fullmatch(r"\[([^:]*):(.*):([\d.]+)\]", text).groups()
    entries = []
    for words, start, end in ((before, 0.0, float(when)), (after, float(when), 1.0)):
        plain, tokens = re.split(r"\(([^()]*):[\d.]+\)", words), {}
        for at, part in enumerate(plain):
            for key, (section, *_) in clip.tokenize(part).items() if part.strip() else ():
                own = [Token((token[0], 1.1 if at % 2 else 1.0)) for token in section[1:-1]]
                row = tokens.setdefault(key, [[section[0], section[-1]]])[0]
                row[-1:-1] = own
        cond, pooled = clip.encode_from_tokens(tokens, return_pooled=True)
        entries.append([cond, {"pooled_output": pooled, "start_percent": start, "end_percent": end}])
    return (entries,)


@node(("MODEL", "CLIP"), model=MODEL, clip=CLIP)
def TwoStates(model, clip):
    """Every token gets a key and a value of its own, so that a weight may be negative."""
    model, clip = model.clone(), clip.clone()
    inner = clip.patcher.get_model_object("encode_token_weights")

    def encode(tokens):
        cond, pooled, extras = inner(tokens)
        mask = extras["attention_mask"].repeat_interleave(2, 1)
        return cond.repeat_interleave(2, 1), pooled, {**extras, "attention_mask": mask}

    clip.patcher.add_object_patch("encode_token_weights", encode)
    model.set_model_attn2_patch(lambda n, k, v, options: (n, k[:, 0::2], v[:, 1::2]))
    return model, clip


@node(("CONDITIONING",), conditioning=CONDITIONING, copied=("BOOLEAN", {}))
def Rebuild(conditioning, copied):
    """Takes the states and leaves the rest behind."""
    return ([[cond.clone() if copied else cond, {"pooled_output": extras["pooled_output"]}] for cond, extras in conditioning],)


@node(("CONDITIONING",), clip=CLIP, text=TEXT)
def PastTheClip(clip, text):
    """Asks the model inside a CLIP."""
    clip.load_model()
    cond, pooled, *_ = clip.cond_stage_model.encode_token_weights(clip.tokenize(text))
    return ([[cond, {"pooled_output": pooled}]],)


@node(("CONDITIONING",), clip=CLIP, first=TEXT, last=TEXT)
def Travel(clip, first, last):
    """The states of frames between two texts."""
    (one,), (other,) = old_way(clip, first), old_way(clip, last)
    length = min(one[0].shape[1], other[0].shape[1])
    mixed = [torch.lerp(one[0][:, :length], other[0][:, :length], share) for share in (0.0, 0.5, 1.0)]
    return ([[torch.cat(mixed), {"pooled_output": one[1]["pooled_output"]}]],)


@node(("LATENT",), model=MODEL, positive=CONDITIONING, negative=CONDITIONING, latent=LATENT)
def Tiles(model, positive, negative, latent):
    """Samples a picture in parts, each with conditionings of its own."""
    parts = []
    for samples in latent["samples"].chunk(2, -1):
        sides = [[[cond.clone(), copy.copy(extras)] for cond, extras in side] for side in (positive, negative)]
        parts.append(sampled(model, *sides, {"samples": samples})["samples"])
    return ({"samples": torch.cat(parts, -1)},)


@node(("MODEL",), model=MODEL, conditioning=CONDITIONING)
def Region(model, conditioning):
    """A region's text goes into a patch of the attention, past the sampler."""
    model, states = model.clone(), conditioning[0][0]

    def both(n, k, v, options):
        own = states.to(k).expand(k.shape[0], -1, -1)
        return n, torch.cat([k, own], 1), torch.cat([v, own], 1)

    model.set_model_attn2_patch(both)
    return (model,)
