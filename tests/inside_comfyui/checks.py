"""What `nodes/encoders` promises, on conditioning made by hand; the real encoders are in tests/comfyui."""

import copy
import importlib
import io
import logging
import sys
from dataclasses import replace

import pytest
import torch

WIDTH = 64


@pytest.fixture(scope="module")
def encoder(library, direction):
    """An alignment with two slots, of states that are a view of the source's."""
    draw = torch.Generator().manual_seed(0)
    slot = library.align(
        direction, direction.anchor_states.float() @ torch.randn(576, WIDTH, generator=draw), "ridge"
    ).slot
    place = importlib.import_module("pack.directions.place").Place
    places = {
        "cond": place("cond", ("l",), WIDTH, WIDTH, length=6, before=1, after=1),
        "pooled_output": place("pooled_output", ("l",), WIDTH, WIDTH),
    }
    return library.Alignment(
        {name: replace(slot, place=where, probe=torch.ones(WIDTH)) for name, where in places.items()}
    )


@pytest.fixture(scope="module")
def settings(library):
    return library.SteeringSettings("add", 2.0, None, 0.01)


@pytest.fixture
def cond():
    return torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def extras():
    pooled = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(2))
    return {
        "pooled_output": pooled,
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]),
        "area": (1, 2, 3, 4),
        "hooks": "kept",
    }


def ranges(parts, cond):
    return [(info["start_percent"], info["end_percent"], torch.equal(states, cond)) for states, info in parts]


def test_content_is_steered_in_every_slot_and_nothing_else(encoders, encoder, settings, cond, extras):
    ((out, info),) = encoders.steer_conditioning([[cond, extras]], encoder, settings)
    assert (out != cond).any(-1)[0].tolist() == [False, True, True, False, False, False]
    assert not torch.equal(info["pooled_output"], extras["pooled_output"])
    assert info["area"] == (1, 2, 3, 4) and info["hooks"] == "kept"


def test_what_comes_in_is_left_as_it_is(encoders, encoder, settings, cond, extras):
    pooled, states = extras["pooled_output"].clone(), cond.clone()
    encoders.steer_conditioning([[cond, extras]], encoder, settings)
    assert (
        "safety_direction" not in extras and torch.equal(extras["pooled_output"], pooled) and torch.equal(cond, states)
    )


def test_a_range_of_percents_is_cut_into_three(encoders, encoder, settings, cond, extras):
    parts = encoders.steer_conditioning([[cond, extras]], encoder, settings, 0.2, 0.7)
    assert ranges(parts, cond) == [(0.0, 0.2, True), (0.2, 0.7, False), (0.7, 1.0, True)]


def test_an_entry_outside_the_range_stays_whole(encoders, encoder, settings, cond):
    parts = encoders.steer_conditioning(
        [[cond, {"start_percent": 0.0, "end_percent": 0.1}]], encoder, settings, 0.2, 0.7
    )
    assert ranges(parts, cond) == [(0.0, 0.1, True)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(1, 4, 99), "99 wide and the alignment is for an encoder 64 wide"),
        (None, "no text states"),
    ],
)
def test_conditioning_that_does_not_fit_says_why(encoders, encoder, settings, bad, words):
    with pytest.raises(ValueError, match=words):
        encoders.steer_conditioning([[bad, {}]], encoder, settings)


def test_what_is_in_no_tensor_of_the_alignment_says_so(encoders, encoder, settings, cond):
    place = replace(encoder.places["cond"], tensor="conditioning_llama3")
    other = replace(encoder, slots={"conditioning_llama3": replace(encoder.slots["cond"], place=place)})
    with pytest.raises(ValueError, match="this conditioning has no conditioning_llama3"):
        encoders.steer_conditioning([[cond, {}]], other, settings)


def test_an_empty_prompt_of_no_tokens_passes(encoders, encoder, settings):
    empty = torch.zeros(1, 0, WIDTH)
    ((out, _),) = encoders.steer_conditioning([[empty, {"attention_mask": torch.zeros(1, 0)}]], encoder, settings)
    assert out.shape == empty.shape
    reading, _ = encoders.inspect_conditioning([[empty, {}]], encoder, 0.01)
    assert reading.score == 0 and not reading.flagged


def test_a_pooled_output_of_another_width_says_so(encoders, encoder, settings, cond):
    with pytest.raises(ValueError, match=r"pooled_output has shape \[1, 32\] and the alignment is for one 64 wide"):
        encoders.steer_conditioning([[cond, {"pooled_output": torch.randn(1, 32)}]], encoder, settings)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (
            (torch.zeros(1, 4, 99), {}),
            "Safety Direction Guard: this conditioning is 99 wide and the alignment is for an encoder 64 wide",
        ),
        ((None, {}), "Safety Direction Guard: this conditioning holds no text states"),
    ],
)
def test_the_guard_says_that_it_was_the_guard(encoders, encoder, settings, bad, words):
    with pytest.raises(ValueError, match=words):
        encoders.guard._guard_entry(bad, encoder, settings, "steer", False, "Safety Direction Guard")


@pytest.mark.parametrize(("value", "where"), [(torch.nan, "cond"), (torch.inf, "pooled_output")])
def test_what_is_not_finite_does_not_go_through(encoders, encoder, settings, cond, extras, value, where):
    tensor = cond if where == "cond" else extras["pooled_output"]
    tensor.view(-1)[70 if where == "cond" else 0] = value
    with pytest.raises(ValueError, match=f"conditioning's {where} has NaN or infinite values"):
        encoders.steer_conditioning([[cond, extras]], encoder, settings)


def test_an_empty_list_can_not_be_inspected(encoders, encoder):
    with pytest.raises(ValueError, match="empty"):
        encoders.inspect_conditioning([], encoder, 0.01)


def test_all_masked_is_no_content(encoders, encoder, settings, cond, extras):
    masked = {"attention_mask": torch.zeros(1, 6)}
    assert not encoders.content.content_of_states(cond, encoder.places["cond"], masked).any()
    ((out, _),) = encoders.steer_conditioning([[cond, {**extras, **masked}]], encoder, settings)
    assert torch.equal(out, cond)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_is_kept(encoders, encoder, settings, cond, extras, dtype):
    low = {**extras, "pooled_output": extras["pooled_output"].to(dtype)}
    ((out, info),) = encoders.steer_conditioning([[cond.to(dtype), low]], encoder, settings)
    assert out.dtype == info["pooled_output"].dtype == dtype and torch.isfinite(out.float()).all()


@pytest.mark.parametrize("tokens", [3, 10_000])
def test_prompts_of_any_length(encoders, encoder, settings, extras, tokens):
    many = torch.randn(1, tokens, WIDTH)
    ((out, _),) = encoders.steer_conditioning([[many, {"pooled_output": extras["pooled_output"]}]], encoder, settings)
    assert (out != many).any(-1).sum() == tokens - 2


def test_a_mark_survives_a_copy(encoders, encoder, settings, cond, extras):
    marked = encoders.steer_conditioning([[cond, extras]], encoder, settings)
    assert len(encoders.marks.marks(copy.deepcopy(marked)[0])) == 1


def test_saved_conditioning_is_read_without_classes_and_carries_no_mark(encoders, encoder, settings, cond, extras):
    marked = encoders.steer_conditioning([[cond, extras]], encoder, settings)
    stream = io.BytesIO()
    torch.save(marked, stream)
    stream.seek(0)
    read = torch.load(stream, weights_only=True)
    assert torch.equal(read[0][0], marked[0][0]) and not encoders.marks.marks(read[0])


def test_anchors_read_in_batches_have_the_states_that_they_have_alone(encoders, minilm):
    prompts = ["a red dog", "a blue cat", "the long road to the harbour", "x"]
    layout = encoders.layout.Layout.discover(minilm)
    states, special = encoders.alignment.anchor_states(minilm, prompts, layout, range(len(prompts)))
    for index, (prompt, rows) in enumerate(zip(prompts, states["cond"])):
        alone = minilm.encode_from_tokens(minilm.tokenize(prompt), return_dict=True)["cond"][0]
        assert torch.allclose(rows, alone[1:-1], atol=1e-4), prompt
        own = special["cond"][index]
        assert set(own) == {1, -1} and torch.allclose(torch.stack([own[1], own[-1]]), alone[[0, -1]], atol=1e-4), prompt


def test_each_language_model_reads_each_prompt_once(encoders, monkeypatch):
    """But for two, which it is asked with: alone, together, and the shorter with little padding. Prompts that are the same to
    a tokenizer are read once, as those in a script that it doesn't know."""
    from tests.comfyui.kinds import FAMILIES, build

    def counting(name, forward):
        return lambda rows: (read.setdefault(name, []).append(len(rows)), forward(rows))[1]

    clip, read = build(FAMILIES["FLUX"], "float32"), {}
    prompts = [" ".join(["a red fox on a road"] * (1 + i % 4)) + f" number {i}" for i in range(30)] + ["赤い狐", "青い空"] * 4
    monkeypatch.setitem(importlib.import_module(f"{encoders.__name__}.batching").TOKENS, "cpu", 8192)
    layout = encoders.layout.Layout.discover(clip)
    for name in ("clip_l", "t5xxl"):
        model = getattr(clip.cond_stage_model, name)
        monkeypatch.setattr(model, "forward", counting(name, model.forward))
    states, _ = encoders.alignment.anchor_states(clip, prompts, layout, range(len(prompts)))
    counts = {name: sum(rows) for name, rows in read.items()}
    assert len(counts) == 2 and all(30 <= count <= len(prompts) + 5 for count in counts.values()), str(read)
    assert all(len(rows) for own in states.values() for rows in own)


def test_both_states_of_each_token_are_found(encoders, minilm):
    """As CLIPNegPip gives them: a key and a value for each."""
    twice, inner = minilm.clone(), minilm.cond_stage_model.encode_token_weights

    def doubled(tokens, *args, **kwargs):
        cond, pooled, *_ = inner(tokens, *args, **kwargs)
        return cond.repeat_interleave(2, 1), pooled

    twice.patcher.add_object_patch("encode_token_weights", doubled)
    layout, tokens = encoders.layout.Layout.discover(twice), twice.tokenize("a red dog")
    output = encoders.places.encode(twice, tokens)
    assert layout.places["cond"].stride == 2 and (layout.places["cond"].before, layout.places["cond"].after) == (2, 2)
    assert layout.content(tokens, output)["cond"].nonzero().flatten().tolist() == [2, 3, 4, 5, 6, 7]


def test_another_packs_tokens_are_left_to_the_states(encoders, minilm):
    layout, output = encoders.layout.Layout.discover(minilm), encoders.places.encode(minilm, minilm.tokenize("a red dog"))
    assert "cond" in layout.content(minilm.tokenize("a red dog"), output)
    assert layout.content(object(), output) == {} and layout.content({"other": [[(1, 1.0)]]}, output) == {}


def test_an_encoder_is_known_by_its_weights_and_layer(encoders, minilm):
    identify = encoders.identity.identify
    name = identify(minilm)
    patched, lower = minilm.clone(), minilm.clone()
    key = next(key for key in minilm.get_key_patches() if key.endswith("output.dense.weight"))
    patched.add_patches({key: ("diff", (torch.ones(1),))}, 0.5)
    lower.clip_layer(-2)
    assert name and identify(encoders.load_minilm()) == name
    assert len({name, identify(patched), identify(lower)}) == 3


def test_an_encoder_with_another_packs_patch_has_no_identity(encoders, minilm):
    hooked = minilm.clone()
    hooked.patcher.add_object_patch("minilm.forward", print)
    assert encoders.identity.identify(hooked) is None


def test_an_encoder_that_was_aligned_is_not_encoded_again(encoders, direction, minilm, tmp_path):
    import folder_paths

    folder_paths.set_user_directory(str(tmp_path))
    few = direction.picked(range(60))
    first = encoders.align_encoder(minilm, few, "ridge")
    fresh = encoders.load_minilm()
    fresh.cond_stage_model.encode_token_weights = None
    again = encoders.align_encoder(fresh, replace(few), "ridge")
    assert all(torch.equal(again.slots[s].vectors, first.slots[s].vectors) for s in first.slots)


@pytest.mark.parametrize("lengths", [(90, 75, 75, 40, 12, 3), (75, 75, 60)])
def test_an_encoder_that_wants_all_of_its_tokens_gets_them(encoders, monkeypatch, lengths):
    """CLIP reads 77 and no fewer, which a first batch of prompts that fill them doesn't show."""
    import comfy.sd
    import comfy.sd1_clip

    class Target:
        clip, tokenizer, params = comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer, {}

    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    clip = comfy.sd.CLIP(Target, model_options={"clip_l_model_config": small, "dtype": torch.float32})
    draw = torch.Generator().manual_seed(0)
    for weights in clip.cond_stage_model.parameters():
        weights.data.copy_(torch.randn(weights.shape, generator=draw) * 0.05)
    module = importlib.import_module(f"{encoders.__name__}.batching")
    # Two prompts of one section are read together at a time.
    monkeypatch.setattr(module, "TOKENS", {})
    monkeypatch.setattr(module, "TOKENS_ELSEWHERE", 2 * 77)
    tokens = [clip.tokenize("cat " * length) for length in lengths]
    reader = module.BatchReader(clip, lambda _, output: {"cond": output["cond"]})
    read = dict(reader.read(tokens))
    for index, one in enumerate(tokens):
        alone = clip.encode_from_tokens(one, return_dict=True)["cond"]
        assert torch.allclose(read[index]["cond"], alone, atol=1e-4)


def test_a_time_limit_reads_fewer_anchors_until_all_are_asked_for(encoders, direction, minilm, monkeypatch, tmp_path):
    import folder_paths

    folder_paths.set_user_directory(str(tmp_path))
    monkeypatch.setattr(sys.modules[encoders.align_encoder.__module__], "FEWEST", 80)
    some = direction.picked(range(200))
    quick = encoders.align_encoder(minilm, some, "ridge", 0.001)
    counts = quick.slots["cond"].fit["anchors"]
    assert 60 <= counts["read"] <= 100 and counts["all"] == len(some.anchor_prompts)
    assert quick.direction["sha256"] == some.fingerprint
    again = encoders.align_encoder(minilm, some, "ridge", 0.001)
    assert torch.equal(again.slots["cond"].vectors, quick.slots["cond"].vectors)
    whole = encoders.align_encoder(minilm, some, "ridge")
    assert whole.slots["cond"].fit["anchors"]["read"] == len(some.anchor_prompts)


def test_a_cancelled_alignment_goes_on_where_it_was_and_gives_the_same(encoders, direction, minilm, monkeypatch, tmp_path):
    import comfy.model_management
    import folder_paths

    some = direction.picked(range(200))
    folder_paths.set_user_directory(str(tmp_path / "at once"))
    whole = encoders.align_encoder(minilm, some, "ridge")
    folder_paths.set_user_directory(str(tmp_path / "cancelled"))
    module = sys.modules[encoders.align_encoder.__module__]
    reader, asked = module.BatchReader.read, []

    def cancelled(self, tokens):
        for count, one in enumerate(reader(self, tokens)):
            if count == 120:
                raise comfy.model_management.InterruptProcessingException
            yield one

    def counted(self, tokens):
        asked.append(len(tokens))
        return reader(self, tokens)

    monkeypatch.setattr(module.BatchReader, "read", cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        encoders.align_encoder(minilm, some, "ridge")
    kept = tmp_path / "cancelled" / "safety_directions"
    assert len(list(kept.glob("unfinished-*"))) == 1
    monkeypatch.setattr(module.BatchReader, "read", counted)
    again = encoders.align_encoder(minilm, some, "ridge")
    assert asked == [len(some.anchor_prompts) - 120]
    assert [path.name.startswith("unfinished-") for path in kept.iterdir()] == [False]
    for name, slot in whole.slots.items():
        assert torch.allclose(again.slots[name].vectors, slot.vectors, atol=1e-3 * float(slot.vectors.abs().max()))
        assert torch.allclose(again.slots[name].anchor_scores, slot.anchor_scores, atol=1e-2)


def test_the_node_says_how_much_is_read_how_long_it_takes_and_that_it_is_once(encoders, monkeypatch):
    import types

    from comfy_execution.utils import CurrentNodeContext

    module = importlib.import_module(f"{encoders.__name__}.progress")
    said, now = [], [100.0]
    server = types.SimpleNamespace(send_progress_text=lambda text, node: said.append((node, text)))
    page = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", page)
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    with CurrentNodeContext("prompt", "7"):
        progress = module.ReadingProgress(1500, 500, True)
        for done in range(501, 601):
            now[0] += 0.1
            progress.update(done)
    assert {node for node, _ in said} == {"7"} and 8 <= len(said) <= 10
    assert "1,500" in said[-1][1] and "once" in said[-1][1]
    assert "If you cancel" in said[-1][1]
    # 0.1 s each, and about 900 are left.
    assert 88 <= int(said[-1][1].split("about ")[1].split(" s")[0]) <= 92
    with CurrentNodeContext("prompt", "7"):
        progress.update(1500)
    assert said[-1] == ("7", "1,500 harmless prompts were read, once for this text encoder.")


def test_a_damaged_file_of_a_cancelled_alignment_is_read_anew(encoders, direction, minilm, tmp_path):
    import folder_paths

    folder_paths.set_user_directory(str(tmp_path))
    module = importlib.import_module(f"{encoders.__name__}.unfinished")
    read = {"a fox": module.Read({"cond": torch.ones(2, 3)}, {"cond": {-1: torch.zeros(3)}})}
    module.keep("ab", ["cond"], read)
    back = module.kept("ab", ["cond"])["a fox"]
    assert torch.equal(back.states["cond"], torch.ones(2, 3)) and torch.equal(back.special["cond"][-1], torch.zeros(3))
    assert module.kept("cd", ["cond"]) == {}
    (path,) = (tmp_path / "safety_directions").glob("unfinished-*")
    path.write_bytes(path.read_bytes()[:-5])
    assert module.kept("ab", ["cond"]) == {}


def test_an_alignment_that_somebody_shared_is_taken(encoders, direction, minilm, monkeypatch, tmp_path):
    import folder_paths

    some = direction.picked(range(100))
    folder_paths.set_user_directory(str(tmp_path / "maker"))
    made = encoders.align_encoder(minilm, some, "ridge")
    shared = tmp_path / "models" / "aligned"
    shared.mkdir(parents=True)
    made.save(shared / "from-a-friend.safetensors")
    folder_paths.set_user_directory(str(tmp_path / "taker"))
    folder_paths.add_model_folder_path("safety_directions", str(shared.parent))
    monkeypatch.setattr(sys.modules[encoders.align_encoder.__module__], "align_slot", None)
    taken = encoders.align_encoder(minilm, some, "ridge")
    assert torch.equal(taken.slots["cond"].readers, made.slots["cond"].readers)


def test_an_alignment_that_can_not_be_kept_still_works_and_says_so(encoders, direction, minilm, monkeypatch):
    import folder_paths

    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *rest: warnings.append(text % rest))
    folder_paths.set_user_directory("/dev/null/nowhere")
    few = direction.picked(range(100))
    assert "minilm" in encoders.align_encoder(minilm, few, "svd").places["cond"].keys
    assert any("can't be kept" in text for text in warnings), warnings


def test_a_checkpoint_without_a_text_encoder_says_so(encoders, direction):
    with pytest.raises(ValueError, match="this checkpoint has no text encoder"):
        encoders.align_encoder(None, direction, "svd")


def test_a_host_s_log_holds_no_more_of_a_graph_than_a_few_long_texts(encoders):
    """Else a client could turn the log over with a few graphs."""
    log = importlib.import_module("pack.nodes.host.log")
    graph = {str(i): {"inputs": {"text": f"{i} " + "a long text " * 10_000}} for i in range(200)}
    (kept,) = log.texts(graph, "keep").values()
    assert 100 * 2_000 >= sum(map(len, kept)) and kept[3].startswith("3 a long text")
    (hashes,) = log.texts(graph, "hash").values()
    assert len(hashes) == len(kept) and len(set(map(len, hashes))) == 1 and log.texts(graph, "leave out") == {}
