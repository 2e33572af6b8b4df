"""What `nodes/encoders.py` promises, on conditioning made by hand; the real encoders are in tests/comfyui."""

import subprocess
import sys

PROGRAM = """
import sys, importlib.util, os
from pathlib import Path
from harness.environment import find
root = Path.cwd()
sys.argv = ["test", "--cpu"]
sys.path.insert(0, os.fspath(find("test").comfyui))
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[os.fspath(root)])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
import torch
from pack.nodes import encoders
from pack.directions.align import align
from pack.directions.direction import load
from pack.directions.encoder import AlignedEncoder, Place
d = load("smollm2-135m-instruct")
draw = torch.Generator().manual_seed(0)
aligned = align(d, d.anchor_states.float() @ torch.randn(576, 64, generator=draw), "ridge")
slots = {"cond": aligned, "pooled_output": aligned}
places = {
    "cond": Place("cond", ("l",), 64, 64, length=6, before=1, after=1),
    "pooled_output": Place("pooled_output", ("l",), 64, 64),
}
encoder = AlignedEncoder(slots, places, {s: torch.ones(64) for s in slots})
how = {"alpha": 2.0, "mode": "add", "categories": None, "budget": 0.01}
cond, pooled = torch.randn(1, 6, 64, generator=draw), torch.randn(1, 64, generator=draw)
mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
extras = {"pooled_output": pooled, "attention_mask": mask, "area": (1, 2, 3, 4), "hooks": "kept"}
(out, info), = encoders.steer_conditioning([[cond, extras]], encoder, how)
changed = (out != cond).any(-1)[0].tolist()
assert changed == [False, True, True, False, False, False], changed
assert not torch.equal(info["pooled_output"], pooled) and info["area"] == (1, 2, 3, 4) and info["hooks"] == "kept"
assert "safety_direction" not in extras and torch.equal(extras["pooled_output"], pooled)
parts = encoders.steer_conditioning([[cond, extras]], encoder, how, 0.2, 0.7)
assert [(p[1]["start_percent"], p[1]["end_percent"], torch.equal(p[0], cond)) for p in parts] == [(0.0, 0.2, True), (0.2, 0.7, False), (0.7, 1.0, True)], parts
ranged = encoders.steer_conditioning([[cond, {"start_percent": 0.0, "end_percent": 0.1}]], encoder, how, 0.2, 0.7)
assert [(p[1]["start_percent"], p[1]["end_percent"], torch.equal(p[0], cond)) for p in ranged] == [(0.0, 0.1, True)], ranged
for bad, words in ((torch.zeros(1, 4, 99), "99 wide and the alignment is for an encoder 64 wide"), (torch.zeros(1, 0, 64), "no tokens"), (None, "no text states")):
    try:
        encoders.steer_conditioning([[bad, {}]], encoder, how)
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
try:
    encoders.inspect_conditioning([], encoder, 0.01)
except ValueError as error:
    assert "empty" in str(error)
else:
    raise AssertionError("empty conditioning was read")
empty = encoders.layout.content_of_states(cond, places["cond"], {"attention_mask": torch.zeros(1, 6)})
assert not empty.any()
clip = encoders.load_minilm()
prompts = ["a red dog", "a blue cat", "the long road to the harbour", "x"]
edges = encoders.layout.find_edges(clip)
states, edge_states = encoders.alignment._anchor_states(clip, prompts, encoders.layout.find_places(clip, edges), edges, range(len(prompts)))
for index, (prompt, rows) in enumerate(zip(prompts, states["cond"])):
    alone = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)["cond"][0]
    assert torch.allclose(rows, alone[1:-1], atol=1e-4), prompt
    own = edge_states["cond"][index]
    assert set(own) == {1, -1} and torch.allclose(torch.stack([own[1], own[-1]]), alone[[0, -1]], atol=1e-4), prompt
import dataclasses, tempfile, folder_paths
from pack.nodes.encoders.identity import identify
name = identify(clip)
assert name and identify(encoders.load_minilm()) == name
patched, lower, hooked = clip.clone(), clip.clone(), clip.clone()
key = next(key for key in clip.get_key_patches() if key.endswith("output.dense.weight"))
patched.add_patches({key: ("diff", (torch.ones(1),))}, 0.5)
lower.clip_layer(-2)
hooked.patcher.add_object_patch("minilm.forward", print)
assert len({name, identify(patched), identify(lower)}) == 3 and identify(hooked) is None
with tempfile.TemporaryDirectory() as folder:
    folder_paths.set_user_directory(folder)
    few = type(d)(d.vectors, d.readers, d.anchor_states[:60], d.anchor_prompts[:60], d.source, d.pairs)
    first = encoders.align_encoder(clip, few, "ridge")
    fresh = encoders.load_minilm()
    fresh.encode_from_tokens = None  # what is known is not encoded
    again = encoders.align_encoder(fresh, dataclasses.replace(few), "ridge")
    assert all(torch.equal(again.slots[s].vectors, first.slots[s].vectors) for s in first.slots)
other = [[cond, {"pooled_output": torch.randn(1, 32)}]]
try:
    encoders.steer_conditioning(other, encoder, how)
except ValueError as error:
    assert "pooled_output has shape [1, 32] and the alignment is for one 64 wide" in str(error), error
else:
    raise AssertionError("a pooled output of another width was steered")
for bad, words in (
    ((torch.zeros(1, 4, 99), {}), "Safety Direction Guard: this conditioning is 99 wide and the alignment is for an encoder 64 wide"),
    ((None, {}), "Safety Direction Guard: this conditioning holds no text states"),
):
    try:
        encoders.steering._guard_entry(bad, encoder, how, "steer", False)
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)
try:
    encoders.align_encoder(None, d, "svd")
except ValueError as error:
    assert "this checkpoint has no text encoder" in str(error), error
else:
    raise AssertionError("no CLIP was aligned")
for value, where in ((torch.nan, "cond"), (torch.inf, "pooled_output")):
    bad = [[cond.clone(), {**extras, "pooled_output": pooled.clone()}]]
    (bad[0][0] if where == "cond" else bad[0][1][where]).view(-1)[70 if where == "cond" else 0] = value
    try:
        encoders.steer_conditioning(bad, encoder, how)
    except ValueError as error:
        assert f"conditioning's {where} has NaN or infinite values" in str(error), error
    else:
        raise AssertionError(f"{value} in {where} went through")
for dtype in (torch.float16, torch.bfloat16):
    ((low, facts),) = encoders.steer_conditioning([[cond.to(dtype), {**extras, "pooled_output": pooled.to(dtype)}]], encoder, how)
    assert low.dtype == facts["pooled_output"].dtype == dtype and torch.isfinite(low.float()).all()
for tokens in (3, 10_000):
    many = torch.randn(1, tokens, 64, generator=draw)
    ((out, _),) = encoders.steer_conditioning([[many, {"pooled_output": pooled}]], encoder, how)
    assert (out != many).any(-1).sum() == tokens - 2
padding = [[cond, {"pooled_output": pooled, "attention_mask": torch.zeros(1, 6)}]]
assert torch.equal(encoders.steer_conditioning(padding, encoder, how)[0][0], cond)
import copy, io
marked = encoders.steer_conditioning([[cond, extras]], encoder, how)
assert len(encoders.steering.marks(copy.deepcopy(marked)[0])) == 1
stream = io.BytesIO()
torch.save(marked, stream)
stream.seek(0)
read = torch.load(stream, weights_only=True)
assert torch.equal(read[0][0], marked[0][0]) and not encoders.steering.marks(read[0])
import logging, folder_paths
from dataclasses import replace
warnings = []
logging.warning = lambda text, *rest: warnings.append(text % rest)
folder_paths.set_user_directory("/dev/null/nowhere")
few = replace(d, anchor_states=d.anchor_states[:100], anchor_prompts=d.anchor_prompts[:100])
assert "minilm" in encoders.align_encoder(clip, few, "svd").places["cond"].keys
assert any("can't be kept" in text for text in warnings), warnings
print("all held")
"""


def test_conditioning_is_steered_in_its_content_and_its_slots_and_nowhere_else(pytestconfig):
    # A process of its own: ComfyUI reads sys.argv when it is imported.
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=pytestconfig.rootpath)
    assert done.returncode == 0 and done.stdout.endswith("all held\n"), done.stderr[-3000:]
