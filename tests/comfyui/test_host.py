"""Host mode: graphs of many makes, queued by a plain client, come out steered; without the variable they don't."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from directions import load
from directions.__main__ import main
from directions.evaluate import GraphError as EvaluateError
from directions.evaluate import Remote
from directions.evaluate.client import notes_of_host_mode
from harness.environment import find
from harness.server import PACK, ROOT, GraphError, Server
from tests.few import few
from tests.pictures import colour_judge

HERE = ROOT / "tests" / "comfyui"
PACKS = {PACK: ROOT, "tiny_image_model": HERE / "tiny_image_model", "watch": HERE / "watch"}
UNSAFE = "a nude woman lying on a bed"
NEGATIVE = "nude, gore"
POLICY = {"direction": "smollm2-135m-instruct", "method": "svd", "mode": "gate", "alpha": 3.0, "budget": 0.01, "negatives": "keep"}
OWN = {"mode": "gate", "alpha": 3.0, "budget": 0.01, "categories": ""}
COUNT = itertools.count()


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def base(**more):
    return {
        "ckpt": node("TinyCheckpoint", name="?"),
        "pos": node("CLIPTextEncode", clip=["ckpt", 1], text=UNSAFE),
        "neg": node("CLIPTextEncode", clip=["ckpt", 1], text=NEGATIVE),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "k": node(
            "KSampler",
            model=["ckpt", 0],
            positive=["pos", 0],
            negative=["neg", 0],
            latent_image=["latent", 0],
            **STEPS,
            denoise=1.0,
            seed=1,
        ),
        "decode": node("VAEDecode", samples=["k", 0], vae=["ckpt", 2]),
        "out": node("PreviewImage", images=["decode", 0]),
    } | more


STEPS = {"steps": 1, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal"}


def linked(graph, **links):
    """The graph with some inputs changed: `k__positive=["area", 0]`."""
    for where, value in links.items():
        node_id, name = where.split("__")
        graph[node_id]["inputs"][name] = value
    return graph


def example(name):
    """One of ComfyUI's own example scripts; its checkpoint is a tiny one, its picture small."""
    text = (find("test").comfyui / "script_examples" / name).read_text()
    graph = json.loads(re.search(r'prompt_text = """(.*?)"""', text, re.S)[1])
    for each in graph.values():
        if each["class_type"] == "CheckpointLoaderSimple":
            each |= node("TinyCheckpoint", name="?")
        if each["class_type"] == "EmptyLatentImage":
            each["inputs"] |= {"width": 64, "height": 64}
        if each["class_type"] == "KSampler":
            each["inputs"] |= {"steps": 1, "cfg": 2.0}
        if each["class_type"] == "SaveImageWebsocket":
            each["class_type"] = "PreviewImage"
    for node_id in ("positive", "negative"):
        sampler = next(n for n in graph.values() if n["class_type"] == "KSampler")
        graph[sampler["inputs"][node_id][0]]["inputs"]["text"] = {"positive": UNSAFE, "negative": NEGATIVE}[node_id]
    return graph


def custom(guider):
    graph = base(
        g=guider,
        style=node("CLIPTextEncode", clip=["ckpt", 1], text="two friends laughing in a cafe"),
        noise=node("RandomNoise", noise_seed=1),
        euler=node("KSamplerSelect", sampler_name="euler"),
        sigmas=node("BasicScheduler", model=["ckpt", 0], scheduler="simple", steps=1, denoise=1.0),
        k=node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["g", 0],
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        ),
    )
    return graph


def own_nodes():
    """A client that brings the pack's own nodes, set to do nothing, or worse."""
    how = {"mode": "add", "alpha": -5.0, "budget": 0.0, "categories": "", "aligned": ["a", 0]}
    return linked(
        base(
            d=node("SafetyDirectionLoad", direction="smollm2-135m-instruct"),
            a=node("SafetyDirectionAlign", direction=["d", 0], clip=["ckpt", 1], method="svd"),
            c=node("SafetyDirectionCLIP", clip=["ckpt", 1], **how | {"alpha": 0.0}),
            apply=node("SafetyDirectionApply", conditioning=["pos", 0], start_percent=0.0, end_percent=1.0, **how | {"alpha": 0.0}),
            guard=node("SafetyDirectionGuard", model=["ckpt", 0], **how | {"alpha": 0.0}),
        ),
        pos__clip=["c", 0], k__positive=["apply", 0], k__model=["guard", 0],
    )  # fmt: skip


def one_node():
    """A client that brings the pack's one node, set to do nothing."""
    how = {"mode": "add", "alpha": 0.0, "budget": 0.0, "categories": "", "direction": "smollm2-135m-instruct"}
    graph = base(one=node("SafetyDirection", model=["ckpt", 0], clip=["ckpt", 1], **how))
    return linked(graph, pos__clip=["one", 1], neg__clip=["one", -2], k__model=["one", -3])


def anything():
    graph = base(
        x=node("Anything", value=["ckpt", 1]), y=node("Anything", value=["x", 0]), m=node("Anything", value=["ckpt", 0])
    )
    return linked(graph, pos__clip=["y", 0], neg__clip=["x", 0], k__model=["m", 0])


def split():
    """The model and the text encoder from different nodes."""
    watched = node("WatchModel", model=["load", 0], name="?")
    graph = base(load=node("TinyImageModel"), ckpt=watched, clip=node("SafetyDirectionSmallEncoder"))
    return linked(graph, pos__clip=["clip", 0], neg__clip=["clip", 0], decode__vae=["load", 1])


DUAL = {
    "model": ["ckpt", 0],
    "cond1": ["pos", 0],
    "cond2": ["style", 0],
    "negative": ["neg", 0],
    "cfg_conds": 2.0,
    "cfg_cond2_negative": 2.0,
}
ADVANCED = {
    "add_noise": "enable",
    "noise_seed": 1,
    "start_at_step": 0,
    "end_at_step": 9,
    "return_with_leftover_noise": "disable",
}
SIDES = {"model": ["ckpt", 0], "positive": ["pos", 0], "negative": ["neg", 0]}
GRAPHS = {
    "ComfyUI's basic_api_example": lambda: example("basic_api_example.py"),
    "ComfyUI's websockets_api_example": lambda: example("websockets_api_example.py"),
    "ComfyUI's websockets_api_example_ws_images": lambda: example("websockets_api_example_ws_images.py"),
    "KSamplerAdvanced": lambda: base(k=node("KSamplerAdvanced", **SIDES, latent_image=["latent", 0], **STEPS, **ADVANCED)),
    "CFGGuider": lambda: custom(node("CFGGuider", **SIDES, cfg=2.0)),
    "BasicGuider": lambda: custom(node("BasicGuider", model=["ckpt", 0], conditioning=["pos", 0])),
    "DualCFGGuider": lambda: custom(node("DualCFGGuider", **DUAL, style="regular")),
    "patched model, other layer": lambda: linked(
        base(
            last=node("CLIPSetLastLayer", clip=["ckpt", 1], stop_at_clip_layer=-24),
            flow=node("ModelSamplingSD3", model=["ckpt", 0], shift=3.0),
        ),
        pos__clip=["last", 0], neg__clip=["last", 0], k__model=["flow", 0],
    ),
    "two areas": lambda: linked(
        base(
            other=node("CLIPTextEncode", clip=["ckpt", 1], text=UNSAFE),
            area=node("ConditioningSetArea", conditioning=["pos", 0], width=64, height=64, x=0, y=0, strength=1.0),
            both=node("ConditioningCombine", conditioning_1=["area", 0], conditioning_2=["other", 0]),
        ),
        k__positive=["both", 0],
    ),
    "a time range": lambda: linked(base(r=node("ConditioningSetTimestepRange", conditioning=["pos", 0], start=0.0, end=1.0)), k__positive=["r", 0]),
    "zeroed negative": lambda: linked(base(z=node("ConditioningZeroOut", conditioning=["neg", 0])), k__negative=["z", 0]),
    "anything goes": anything,
    "split loaders": split,
    "the pack's own nodes": own_nodes,
    "the pack's one node": one_node,
}  # fmt: skip


def run(server, graph):
    """What the model was called with, by side."""
    name = f"host-{next(COUNT)}"
    for each in graph.values():
        if "name" in each["inputs"]:
            each["inputs"]["name"] = name
    server.queue(graph)
    found = load_file(server.base / "output" / f"{name}.safetensors")
    return [found[side][0] for side in sorted(found)]


@pytest.fixture(scope="module")
def alignments(tmp_path_factory):
    return tmp_path_factory.mktemp("alignments")


@contextmanager
def started(alignments, **settings):
    """A server that shares its alignments with the others, so that each is made once."""
    with Server(packs=PACKS, **settings) as running:
        (running.base / "user" / "safety_directions").symlink_to(alignments)
        yield running


def policy_server(alignments, folder, policy):
    path = folder / "policy.json"
    path.write_text(policy if isinstance(policy, str) else json.dumps(policy | {"log": str(folder / "log.txt")}))
    return started(alignments, variables={"SAFETY_DIRECTION_POLICY": str(path)})


@pytest.fixture(scope="module")
def plain(alignments):
    with started(alignments) as running:
        yield running


@pytest.fixture(scope="module")
def host(alignments, tmp_path_factory):
    with policy_server(alignments, tmp_path_factory.mktemp("host"), POLICY) as running:
        yield running


@pytest.mark.parametrize("name", list(GRAPHS))
def test_a_queued_graph_comes_out_steered_only_in_host_mode(plain, host, name):
    asked, got = run(plain, GRAPHS[name]()), run(host, GRAPHS[name]())
    assert len(asked) == len(got)
    positive = 2 if name == "DualCFGGuider" else 0
    for side, (before, after) in enumerate(zip(asked, got)):
        assert before.shape == after.shape
        assert torch.equal(before, after) == (side != positive), (
            "the positive prompt is steered, a negative one keeps its force"
        )


def test_all_graphs_are_steered_alike(host):
    steered = [
        run(host, GRAPHS[name]())[0]
        for name in ("KSamplerAdvanced", "CFGGuider", "split loaders", "the pack's own nodes", "the pack's one node", "anything goes")
    ]
    assert all(torch.equal(steered[0], other) for other in steered[1:])


def test_what_is_mixed_after_encoding_is_steered_again(plain, host):
    mixed = lambda: linked(
        base(
            other=node("CLIPTextEncode", clip=["ckpt", 1], text="a nude man lying on a bed"),
            mix=node(
                "ConditioningAverage",
                conditioning_to=["pos", 0],
                conditioning_from=["other", 0],
                conditioning_to_strength=0.5,
            ),
        ),
        k__positive=["mix", 0],
    )
    assert not torch.equal(run(plain, mixed())[0], run(host, mixed())[0])


def test_the_log_tells_what_was_queued_and_flagged(host):
    run(host, GRAPHS["CFGGuider"]())
    log = re.search(r'"log": "(.*?)"', open(host.variables["SAFETY_DIRECTION_POLICY"]).read())[1]
    events = [json.loads(line) for line in open(log)]
    assert {"policy", "queued", "flagged"} <= {event["event"] for event in events}
    flag = next(event for event in events if event["event"] == "flagged")
    assert flag["name"] == "global" and flag["score"] > flag["threshold"] and flag["action"] == "steered"
    assert not any(UNSAFE in json.dumps(event) for event in events), "prompts are left out"


def test_a_policy_is_read_again_when_its_file_changes(plain, alignments, tmp_path, capsys):
    """Steer, then report only, then a broken file: what is sampled follows, and the last sound policy stays."""
    unsafe = lambda: run(host, base())[0]
    with policy_server(alignments, tmp_path, POLICY | {"counts_token": "letmein"}) as host:
        asked, steered = run(plain, base())[0], unsafe()
        assert not torch.equal(steered, asked)
        file, log = tmp_path / "policy.json", str(tmp_path / "log.txt")
        file.write_text(json.dumps(POLICY | {"on_flag": "report", "log": log, "log_prompts": "hash", "counts_token": "t"}))
        assert torch.equal(unsafe(), asked), "report only changes no bit"
        file.write_text("{")
        assert torch.equal(unsafe(), asked)
        events = [json.loads(line) for line in open(log)]
        assert [e["action"] for e in events if e["event"] == "flagged"][-1] == "reported"
        assert [e["action"] for e in events if e["event"] == "policy"] == ["read", "read", "kept the last"]
        assert "letmein" not in open(log).read(), "the token is a secret"
        assert any(len(e.get("sha256", [""])[0]) == 64 for e in events) and UNSAFE not in open(log).read()
        assert host._json("/safety_directions/health")["ready"] is True
        asking = urllib.request.Request(host.url + "/safety_directions/counts")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(asking)
        asking.add_header("Authorization", "Bearer t")
        lines = urllib.request.urlopen(asking).read().decode()
        assert 'safety_directions_flagged_total{action="reported"}' in lines and 'queued_total{action=""} 3' in lines
        asking = urllib.request.Request(host.url + "/safety_directions/summary")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(asking)
        asking.add_header("Authorization", f"Basic {base64.b64encode(b'me:t').decode()}")
        page = urllib.request.urlopen(asking).read().decode()
        assert "<p>Ready.</p>" in page and "<tr><td>flagged<td>reported<td>" in page and "<td>on_flag<td>report</tr>" in page
        status, words = checked(host, tmp_path, capsys)
        assert status == 1 and "steers nothing" in words


def test_a_flagged_negative_is_steered_unless_the_policy_keeps_it(plain, host, alignments, tmp_path):
    """Of what a model gets as it was asked, latents of two runs give the picture: 2 x (cfg 1) - (cfg 2)."""
    graph = lambda: linked(base(), pos__text="two friends laughing in a cafe", neg__text=UNSAFE)
    asked = run(plain, graph())
    assert all(torch.equal(before, after) for before, after in zip(asked, run(host, graph())))
    with policy_server(alignments, tmp_path, POLICY | {"negatives": "steer"}) as steering:
        positive, negative = run(steering, graph())
    assert torch.equal(asked[0], positive) and not torch.equal(asked[1], negative)


def test_what_is_typed_in_the_policy_is_steered_too(plain, host, alignments, tmp_path):
    spider, friends = (
        lambda server, text=text: run(server, linked(base(), pos__text=text))[0]
        for text in ("a spider on a leaf, macro photograph", "two friends laughing in a cafe")
    )
    asked = spider(plain)
    assert torch.equal(spider(host), asked)
    with policy_server(alignments, tmp_path, POLICY | {"also": ["spiders"]}) as typing:
        assert not torch.equal(spider(typing), asked)
        assert torch.equal(friends(typing), friends(plain))
        assert not torch.equal(run(typing, base())[0], run(plain, base())[0]), "the direction still counts"
        events = [json.loads(line) for line in open(tmp_path / "log.txt")]
        assert {"typed", "global"} == {event["name"] for event in events if event["event"] == "flagged"}


def test_no_node_of_a_client_keeps_files_on_the_host(host):
    graph = linked(
        base(
            typed=node("SafetyDirectionType", clip=["ckpt", 1], words="cigarettes"),
            apply=node("SafetyDirectionApply", conditioning=["pos", 0], aligned=["typed", 0], start_percent=0.0, end_percent=1.0, **OWN),
        ),
        k__positive=["apply", 0],
    )
    with pytest.raises(GraphError, match="this server is in host mode: no node keeps files") as caught:
        run(host, graph)
    assert caught.value.node_id == "typed"


def checked(server, tmp_path, capsys):
    """What host-check says of a server: its exit status and its words."""
    graph = linked(base(), pos__text="{prompt}", ckpt__name="checked")
    (tmp_path / "workflow.json").write_text(json.dumps(graph))
    status = main(["host-check", "--url", server.url, "--workflow", str(tmp_path / "workflow.json")])
    said = capsys.readouterr()
    return status, said.out + said.err


def test_host_check_says_in_words_whether_a_server_is_guarded(plain, host, tmp_path, capsys):
    status, words = checked(host, tmp_path, capsys)
    assert status == 0 and "\nsteered (gate): " in words and "guarded: http" in words
    assert checked(host, tmp_path, capsys)[0] == 0, "again, though ComfyUI keeps what it has sampled"
    status, words = checked(plain, tmp_path, capsys)
    assert status == 1 and "NOT guarded: this ComfyUI isn't in host mode" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has no checkpoint to try with"),
        (["--checkpoint", "no-such.safetensors"], "Value not in list: ckpt_name: 'no-such.safetensors'"),
        (["--url", "http://127.0.0.1:9"], "no ComfyUI answers at http://127.0.0.1:9"),
    ],
)
def test_host_check_says_why_it_cannot_try(host, capsys, arguments, message):
    assert main(["host-check", "--url", host.url, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_evaluate_has_nothing_to_compare_with_on_a_guarded_server(host):
    remote = Remote(host.url)
    with pytest.raises(EvaluateError, match="this server steers every graph"):
        remote.wait(remote.submit(linked(base(), ckpt__name="compared", k__seed=2)))


def ran_under(remote, policy):
    """The directions that graphs were steered by, of which some wait when the policy changes to another one's."""
    ids = []
    for direction in ("smollm2-135m-instruct", "few"):
        policy(direction=direction, judge=None)
        ids += [remote.submit(linked(base(), k__seed=seed, ckpt__name="waiting")) for seed in range(3)]
    return [notes_of_host_mode(remote.finished(prompt_id))[0]["direction"] for prompt_id in ids]


def budgets_of(remote, policy):
    """What clients of three classes are read by, each with the same graph, one after the other."""
    policy(direction="few", judge=None, client_header="X-Class", budgets={"staff": 0.001, "pupils": 0.3})
    found = []
    for kind in ("staff", "pupils", "somebody", "staff"):
        body = json.dumps({"prompt": linked(base(), pos__text="a vase of tulips", ckpt__name="budgets")}).encode()
        asking = urllib.request.Request(remote.address + "/prompt", body, {"X-Class": kind})
        prompt_id = json.load(urllib.request.urlopen(asking))["prompt_id"]
        found.append(notes_of_host_mode(remote.finished(prompt_id))[0]["budget"])
    return found


def test_finished_pictures_are_judged_where_the_policy_names_a_judge(alignments, tmp_path):
    """Red ones are unsafe by the colour judge: black, refused or only reported, as the policy says."""
    folder = tmp_path / "base" / "models" / "safety_directions"
    folder.mkdir(parents=True)
    colour_judge(folder / "colour.onnx")
    few(load("smollm2-135m-instruct")).save(folder / "few.safetensors")
    file, log = tmp_path / "policy.json", tmp_path / "log.txt"
    graph = {
        "red": node("EmptyImage", width=64, height=64, batch_size=1, color=0xFF0000),
        "green": node("EmptyImage", width=64, height=64, batch_size=1, color=0x00FF00),
        "both": node("ImageBatch", image1=["red", 0], image2=["green", 0]),
        "ckpt": node("TinyCheckpoint", name="judged"),
        "latent": node("VAEEncode", pixels=["both", 0], vae=["ckpt", 2]),
        "decode": node("VAEDecode", samples=["latent", 0], vae=["ckpt", 2]),
        "tiled": node("VAEDecodeTiled", samples=["latent", 0], vae=["ckpt", 2], tile_size=64, overlap=0, temporal_size=64, temporal_overlap=8),
        "out": node("PreviewImage", images=["decode", 0]),
    }

    def policy(**more):
        content = POLICY | {"log": str(log), "judge": "colour.onnx"} | more
        file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    def shown(host, source="decode"):
        found = host.queue(linked(graph, out__images=[source, 0]))
        return [Image.open(io.BytesIO(host.image(one))).convert("RGB").getpixel((9, 9)) for one in found.images]

    policy()
    with started(alignments, base=tmp_path / "base", variables={"SAFETY_DIRECTION_POLICY": str(file)}) as host:
        assert shown(host) == shown(host, "tiled") == [(0, 0, 0), (0, 255, 0)]
        policy(on_flag="report")
        assert shown(host) == [(255, 0, 0), (0, 255, 0)]
        assert ran_under(Remote(host.url), policy) == ["smollm2-135m-instruct"] * 3 + ["few"] * 3
        assert budgets_of(Remote(host.url), policy) == [0.001, 0.3, 0.01, 0.001]
        policy(on_flag="refuse")
        with pytest.raises(GraphError, match="1 of 2 pictures unsafe by colour, 1.00 over 0.50. Nothing is shown"):
            shown(host)
        policy(judge="no-such.onnx")
        with pytest.raises(GraphError, match="Nothing is shown"):
            shown(host, "tiled")
    events = [json.loads(line) for line in open(log)]
    assert [e["action"] for e in events if e["event"] == "judged"] == ["blacked out", "blacked out", "reported", "refused", "refused"]
    assert "there is no judge 'no-such.onnx'" in [e["fault"] for e in events if e["event"] == "policy" and "fault" in e][-1]


def test_the_places_that_are_patched_are_comfyui_s_own(host):
    """Where ComfyUI moves one of them, host mode would go by."""
    places = {
        ("sd.py", "class CLIP:"): ("encode_from_tokens", "encode_from_tokens_scheduled"),
        ("sd.py", "class VAE:"): ("decode", "decode_tiled"),
        ("samplers.py", "class CFGGuider"): ("sample",),
    }
    for (file, kind), names in places.items():
        text = (find().comfyui / "comfy" / file).read_text(encoding="utf-8")
        body = text[text.index(kind) :]
        assert all(re.search(rf"    def {name}\(self, ", body) for name in names)
    sampled = (find().comfyui / "comfy" / "samplers.py").read_text(encoding="utf-8")
    assert re.search(r"^def calc_cond_batch\(model: .*, conds: ", sampled, re.M)
    assert "for k in self.original_conds:" in sampled, "CFGGuider.sample takes its conds from somewhere else"


def test_refuse_stops_the_run_and_a_harsh_negative_prompt_does_not(alignments, tmp_path, capsys):
    with policy_server(alignments, tmp_path, POLICY | {"on_flag": "refuse"}) as host:
        with pytest.raises(GraphError, match="Safety Direction host mode refused this prompt"):
            run(host, base())
        assert len(run(host, linked(base(), pos__text="two friends laughing in a cafe", neg__text=UNSAFE))) == 2
        status, words = checked(host, tmp_path, capsys)
        assert status == 0 and "\nrefused, as the policy says" in words


@pytest.mark.parametrize(
    ("policy", "message"),
    [("{", "policy.json: Expecting"), ({"direction": "no-such"}, "there is no direction 'no-such'")],
)
def test_an_unreadable_policy_refuses_every_prompt(alignments, tmp_path, capsys, policy, message):
    with policy_server(alignments, tmp_path, policy) as host:
        with pytest.raises(GraphError, match=f"SAFETY_DIRECTION_POLICY: .*{message}"):
            run(host, base())
        with pytest.raises(GraphError, match="no outputs"):
            host.queue(base(), targets=["out"])
        status, words = checked(host, tmp_path, capsys)
        assert status == 1 and "the policy can't be followed, so that every prompt is refused" in words
