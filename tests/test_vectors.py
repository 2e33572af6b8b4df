"""docs/file-format.md is true: its test vectors are read, or refused, as `expected.json` says."""

from __future__ import annotations

import importlib.util
import json

import pytest

from directions import DirectionFormatError
from directions.direction import read_direction
from harness.server import ROOT

HERE = ROOT / "docs" / "vectors"
EXPECTED = json.loads((HERE / "expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED["sound"])
def test_a_sound_file_is_read_as_it_was_written(name):
    direction, expected = read_direction(HERE / name), EXPECTED["sound"][name]
    prompts, own = expected["metadata"]["anchor_prompts"], len(expected["metadata"]["anchor_prompts"])
    states = expected["tensors"]["anchors.states"]
    if grid := expected["tensors"].pop("anchors.states_grid", None):
        low, step = grid["values"][:2], grid["values"][2:]
        states["values"] = [low[i % 2] + value * step[i % 2] for i, value in enumerate(states["values"])]
    found = {"anchors.states": direction.anchor_states[:own]}
    if len(direction.prompt_scores):
        found["anchors.prompt_scores"] = direction.prompt_scores[:own]
    if len(direction.token_scores):
        counts = direction.token_counts[:own].float()
        found |= {"anchors.token_scores": direction.token_scores, "anchors.token_counts": counts}
    found |= {f"direction.{key}": vector for key, vector in direction.vectors.items()} | {
        f"reader.{key}": reader for key, reader in direction.readers.items()
    }
    assert {
        key: {"shape": list(tensor.shape), "values": tensor.flatten().tolist()} for key, tensor in found.items()
    } == expected["tensors"]
    assert list(direction.anchor_prompts[:own]) == prompts
    for kind in ("mentions", "near"):
        assert list(getattr(direction, kind)) == expected["metadata"].get(kind, [])
    translations = zip(direction.languages[own:], direction.originals[own:].tolist(), direction.anchor_prompts[own:])
    assert [list(one) for one in translations] == expected["metadata"].get("translations", [])
    assert (direction.source, direction.pairs, direction.licence) == tuple(
        expected["metadata"][key] for key in ("source", "pairs", "licence")
    )


@pytest.mark.parametrize("name", EXPECTED["broken"])
def test_a_broken_file_is_refused(name):
    with pytest.raises(DirectionFormatError, match=name):
        read_direction(HERE / name)


def test_the_script_writes_these_very_files():
    spec = importlib.util.spec_from_file_location("make_vectors", HERE / "make.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.vectors() == {
        path.name: path.read_bytes() for path in HERE.iterdir() if path.suffix in (".safetensors", ".json")
    }


def test_what_a_file_is_written_from_here_is_what_the_specification_says(planted, tmp_path):
    path = planted.direction.save(tmp_path / "planted.safetensors")
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    specification = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
    for key in json.loads(header["__metadata__"]["safety_direction"]):
        assert f"| `{key}` |" in specification
    for name in header:
        assert f"`{name.partition('.')[0]}" in specification
