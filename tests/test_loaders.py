"""Which text encoders a ComfyUI can load, from what it says of its nodes and from workflows."""

import sys

import pytest

from directions.__main__ import main
from directions.align_all import align_all
from directions.loaders import Loader, find_loaders, unused

FILES = ["clip_l.safetensors", "t5.safetensors", "other.safetensors"]
INFO = {
    "CheckpointLoaderSimple": {
        "input": {"required": {"ckpt_name": [["sd.safetensors", "xl.safetensors"], {}]}},
        "output": ["MODEL", "CLIP", "VAE"],
    },
    "CLIPLoader": {
        "input": {
            "required": {"clip_name": [FILES], "type": ["COMBO", {"options": ["wan", "sd3"]}]},
            "optional": {"device": [["default", "cpu"], {"advanced": True}]},
        },
        "output": ["CLIP"],
    },
    "DualCLIPLoader": {
        "input": {"required": {"clip_name1": [FILES], "clip_name2": [FILES], "type": [["flux", "sdxl"]]}},
        "output": ["CLIP"],
    },
    "LoraLoader": {
        "input": {"required": {"clip": ["CLIP"], "lora_name": [["x.safetensors"]]}},
        "output": ["CLIP"],
    },
    "KSampler": {"input": {"required": {"seed": ["INT", {}]}}, "output": ["LATENT"]},
}


def saved(*nodes, subgraphs=()):
    own = [{"type": kind, "widgets_values": values} for kind, *values in nodes]
    graphs = [{"nodes": [{"type": kind, "widgets_values": values} for kind, *values in some]} for some in subgraphs]
    return {"nodes": own, "definitions": {"subgraphs": graphs}}


def titles(*workflows):
    return [loader.title for loader in find_loaders(INFO, workflows)]


def test_every_checkpoint_is_loaded_without_a_workflow_that_says_so():
    assert titles() == ["sd.safetensors", "xl.safetensors"]
    assert find_loaders(INFO, [])[0] == Loader("CheckpointLoaderSimple", (("ckpt_name", "sd.safetensors"),), 1)


def test_workflows_say_how_files_are_loaded_also_in_their_subgraphs_and_in_api_format():
    page = saved(
        ("DualCLIPLoader", *FILES[:2], "flux"),
        ("KSampler", 5),
        subgraphs=[[("CLIPLoader", FILES[1], "wan", "default")]],
    )
    api = {"4": {"class_type": "CLIPLoader", "inputs": {"clip_name": FILES[2], "type": "sd3"}}}
    assert titles(page, api)[2:] == [
        "clip_l.safetensors, t5.safetensors, flux",
        "t5.safetensors, wan",
        "other.safetensors, sd3",
    ]


def test_the_same_files_in_another_order_are_the_same_encoder():
    assert len(titles(*(saved(("DualCLIPLoader", *files, "flux")) for files in (FILES[:2], FILES[1::-1])))) == 3


@pytest.mark.parametrize(
    "workflow",
    [
        saved(("CLIPLoader", "absent.safetensors", "wan")),
        saved(("CLIPLoader", FILES[0], "a kind that this ComfyUI doesn't know")),
        saved(("CLIPLoader", FILES[0])),
        saved(("LoraLoader", "x.safetensors")),
        {"4": {"class_type": "CLIPLoader", "inputs": {"clip_name": ["7", 0], "type": "wan"}}},
        saved(("NotInstalled", 1)),
        {"nodes": [{"type": None}]},
        {"nodes": 7},
        {"4": {}},
        {"last_node_id": 3},
        [],
        "text",
        None,
    ],
)
def test_what_is_not_there_needs_other_nodes_or_is_no_workflow_is_passed_over(workflow):
    assert len(titles(workflow)) == 2


def test_files_that_no_workflow_loads_are_named():
    loaders = find_loaders(INFO, [saved(("DualCLIPLoader", *FILES[:2], "flux"))])
    assert unused(INFO, loaders) == ["other.safetensors"]


def test_a_name_is_small_letters_says_the_encoder_and_the_direction_and_fits():
    one, two = (
        Loader("CLIPLoader", (("clip_name", name), ("type", "wan"), ("device", "default")), 0)
        for name in ("sub/UMT5 XXL.safetensors", "x" * 99)
    )
    assert one.name("smollm2") == "sub-umt5-xxl-wan-smollm2"
    assert len(two.name("smollm2")) == 64 and two.name("smollm2") != two.name("smollm3")


def test_interrupted_it_stops_the_server_too_and_says_how_to_go_on(monkeypatch, capsys):
    module, cancelled = sys.modules[align_all.__module__], []

    class Running:
        address = "http://here"

        def __init__(self, address):
            pass

        def read(self, path, content=None):
            facts = {"sha256": "ab"} if "/direction/" in path else {"error": "no"}
            return {"/object_info": {**INFO, "SafetyDirectionAlign": {}}}.get(
                path, [] if "dir=" in path or "index" in path else facts
            )

        def submit(self, graph):
            assert graph["align"]["inputs"]["seconds"] == 0.0 and graph["align"]["inputs"]["clip"] == ["encoder", 1]
            return "an id"

        def finished(self, prompt_id, stopped):
            raise KeyboardInterrupt

        def cancel(self, prompt_ids):
            cancelled.extend(prompt_ids)

    monkeypatch.setattr(module, "Remote", Running)
    assert main(["align-all"]) == 130 and cancelled == ["an id"]
    assert "goes on from there" in capsys.readouterr().err


def test_without_a_comfyui_it_says_so(capsys):
    assert main(["align-all", "--server", "http://127.0.0.1:9"]) == 2
    assert "no ComfyUI answers at http://127.0.0.1:9" in capsys.readouterr().err
