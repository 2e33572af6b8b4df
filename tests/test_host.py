"""Routing and policies, without a ComfyUI; whole graphs run in tests/comfyui/test_host.py."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def host():
    # nodes/__init__.py wants ComfyUI; this module doesn't.
    for name, folder in (("host_pack", ROOT), ("host_pack.nodes", ROOT / "nodes")):
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [str(folder)]
    yield importlib.import_module("host_pack.nodes.host")
    for name in [name for name in sys.modules if name.startswith("host_pack")]:
        del sys.modules[name]


def routed(host, graph):
    known = {
        "Loader": ({}, ["MODEL", "CLIP", "VAE"]),
        "Lora": ({"model": "MODEL", "clip": "CLIP"}, ["MODEL", "CLIP"]),
        "Encode": ({"clip": "CLIP", "text": "STRING"}, ["CONDITIONING"]),
        "Sample": ({"model": "MODEL", "positive": "CONDITIONING"}, ["LATENT"]),
        "Either": ({"thing": "CLIP,MODEL"}, ["LATENT"]),
        "Mystery": ({}, ["WHATEVER"]),
        "Reroute": ({"value": "*"}, ["*"]),
        "ClipOfModel": ({"model": "MODEL"}, ["CLIP", "INT"]),
        "SaveClip": ({"clip": "CLIP"}, []),
    }
    return host.route(graph, lambda name: host.Sockets(*known[name]) if name in known else None, host.Policy("d"))


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def through(graph, link):
    """The node types that a link comes through, up to the first one of the client's."""
    found = []
    while link[0].startswith("safety-direction:"):
        each = graph[link[0]]
        found.append(each["class_type"])
        link = each["inputs"].get("clip") or each["inputs"]["model"]
    return [*found, link[0]]


def test_every_clip_and_model_is_routed_where_it_is_used(host):
    graph = {
        "1": node("Loader"),
        "2": node("Encode", clip=["1", 1], text="x"),
        "3": node("Sample", model=["1", 0], positive=["2", 0]),
    }
    out = routed(host, graph)
    assert through(out, out["2"]["inputs"]["clip"]) == ["SafetyDirectionCLIP", "1"]
    assert through(out, out["3"]["inputs"]["model"]) == ["SafetyDirectionGuard", "1"]
    assert out["3"]["inputs"]["positive"] == ["2", 0] and out["2"]["inputs"]["text"] == "x"
    assert graph["2"]["inputs"]["clip"] == ["1", 1], "the client's graph was changed"


def test_what_only_makes_a_clip_or_model_from_another_gets_it_plain_and_is_routed_behind(host):
    out = routed(
        host,
        {"1": node("Loader"), "2": node("Lora", model=["1", 0], clip=["1", 1]), "3": node("Encode", clip=["2", 1])},
    )
    assert out["2"]["inputs"] == {"model": ["1", 0], "clip": ["1", 1]}
    assert through(out, out["3"]["inputs"]["clip"]) == ["SafetyDirectionCLIP", "2"]


@pytest.mark.parametrize(
    ("source", "consumer", "through_node"),
    [
        ("Mystery", ("Encode", "clip"), "SafetyDirectionCLIP"),  # the source doesn't say what it gives
        ("NoSuchNode", ("Encode", "clip"), "SafetyDirectionCLIP"),
        ("Loader", ("NoSuchNode", "anything"), "SafetyDirectionGuard"),  # the consumer doesn't say what it takes
        ("Loader", ("Reroute", "value"), "SafetyDirectionGuard"),
        ("Loader", ("Either", "thing"), "SafetyDirectionGuard"),  # the consumer would take both
        ("Reroute", ("Sample", "model"), "SafetyDirectionGuard"),
        ("ClipOfModel", ("SaveClip", "clip"), "SafetyDirectionCLIP"),  # no outputs: it may do anything with it
    ],
)
def test_either_end_of_a_link_may_say_what_it_carries(host, source, consumer, through_node):
    out = routed(host, {"1": node(source), "2": node(consumer[0], **{consumer[1]: ["1", 0]})})
    assert through(out, out["2"]["inputs"][consumer[1]]) == [through_node, "1"]


def test_a_guard_never_waits_for_a_clip_that_waits_for_it(host):
    graph = {
        "1": node("Loader"),
        "2": node("ClipOfModel", model=["1", 0]),
        "3": node("Encode", clip=["2", 0]),
        "4": node("Sample", model=["1", 0], positive=["3", 0]),
    }
    out = routed(host, graph)
    assert "aligned" not in out["safety-direction:guard:1:0"]["inputs"]


def test_a_client_cannot_stand_in_for_an_inserted_node(host):
    graph = {
        "1": node("Loader"),
        "2": node("Encode", clip=["1", 1]),
        "safety-direction:clip:1:1": node("Reroute", value=["1", 1]),
    }
    assert routed(host, graph)["safety-direction:clip:1:1"]["class_type"] == "SafetyDirectionCLIP"


@pytest.mark.parametrize("link", [["1", 1], ["1", -2], {"__value__": ["1", 1]}, {"__value__": {"__value__": ["1", 1]}}])
def test_a_link_is_found_however_it_is_written(host, link):
    out = routed(host, {"1": node("Loader"), "2": node("Reroute", value=link)})
    assert through(out, out["2"]["inputs"]["value"]) == ["SafetyDirectionCLIP", "1"]


def test_a_value_that_is_no_link_stays_as_it_is(host):
    values = {"__value__": ["a", "b"]}
    assert routed(host, {"1": node("Encode", text=values)})["1"]["inputs"] == {"text": values}


def test_the_clients_own_steering_nodes_are_passed_by(host):
    graph = {
        "1": node("Loader"),
        "c": node("SafetyDirectionCLIP", clip=["1", 1], alpha=0),
        "2": node("Encode", clip=["c", 0]),
        "a": node("SafetyDirectionApply", conditioning=["2", 0]),
        "b": node("SafetyDirectionApply", conditioning=["a", 0]),
        "g": node("SafetyDirectionGuard", model=["h", 0]),
        "h": node("SafetyDirectionGuard", model=["1", 0]),
        "3": node("Sample", model=["g", 0], positive=["b", 0]),
    }
    out = routed(host, graph)
    assert through(out, out["2"]["inputs"]["clip"]) == ["SafetyDirectionCLIP", "1"] and out["2"]["inputs"]["clip"][
        0
    ].startswith("safety-direction:")
    assert through(out, out["3"]["inputs"]["model"]) == ["SafetyDirectionGuard", "1"] and out["3"]["inputs"][
        "positive"
    ] == ["2", 0]


@pytest.mark.parametrize("last", [0, -3])
def test_the_one_node_is_passed_by_at_its_model_and_clip_however_outputs_are_counted(host, last):
    graph = {
        "1": node("Loader"),
        "one": node("SafetyDirection", model=["1", 0], clip=["1", 1], alpha=0),
        "2": node("Encode", clip=["one", last + 1]),
        "3": node("Sample", model=["one", last], positive=["2", 0]),
        "look": node("Mystery", aligned=["one", last + 2]),
    }
    out = routed(host, graph)
    assert through(out, out["2"]["inputs"]["clip"]) == ["SafetyDirectionCLIP", "1"]
    assert through(out, out["3"]["inputs"]["model"]) == ["SafetyDirectionGuard", "1"]
    assert out["look"]["inputs"]["aligned"] == ["one", last + 2], "an alignment is the node's own"


def test_steering_nodes_in_a_circle_do_not_hang_the_host(host):
    graph = {
        "a": node("SafetyDirectionApply", conditioning=["b", 0]),
        "b": node("SafetyDirectionApply", conditioning=["a", 0]),
        "3": node("Sample", positive=["a", 0]),
    }
    assert routed(host, graph)["3"]["inputs"]["positive"][0] in ("a", "b")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "policy.json: Expecting"),
        ([1], "not a JSON object"),
        ({}, "names no direction"),
        ({"direction": "d", "strength": 5}, "unknown: strength; known: direction, "),
        ({"direction": "d", "alpha": "5"}, "alpha is '5', not a number"),
        ({"direction": "d", "mode": "magic"}, "mode is one of gate, graded, add, project"),
        ({"direction": "d", "on_flag": "laugh"}, "on_flag is steer or refuse"),
        ({"direction": "d", "budget": 2}, "budget a share from 0 to 1"),
        ({"direction": "d", "alpha": float("nan")}, "alpha is -20 to 20"),
    ],
)
def test_a_policy_that_cannot_be_followed_says_why(host, tmp_path, content, message):
    path = tmp_path / "policy.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(host.PolicyError, match=message):
        host.read_policy(path)


def test_a_policy_names_what_the_nodes_take(host, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(
        json.dumps({"direction": "d", "mode": "add", "alpha": 3, "categories": "violence", "on_flag": "refuse"})
    )
    assert host.read_policy(path).settings == {"mode": "add", "alpha": 3, "budget": 0.01, "categories": "violence"}
