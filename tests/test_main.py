import json
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

import directions
from directions.__main__ import main
from directions.direction import LIBRARY
from directions.place import Place
from directions.prompts import read_pairs, training_anchors


def test_show_lists_and_describes(capsys):
    assert main(["show"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
    assert main(["show", "smollm2-135m-instruct"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["categories"] == ["disturbing", "hate", "humiliation", "illegal", "sexual", "violence"]


def test_check_tells_good_from_bad(planted, tmp_path, capsys):
    good = planted.direction.save(tmp_path / "good.safetensors")
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:-5])
    assert main(["check", str(good)]) == 0
    assert main(["check", str(good), str(bad)]) == 1
    assert "truncated" in capsys.readouterr().out


def test_check_knows_what_save_aligned_direction_writes(aligned, tmp_path, capsys):
    width = aligned.slot.width
    slot = replace(aligned.slot, place=Place("cond", ("l",), width, width), probe=torch.ones(width))
    path = directions.Alignment({"cond": slot}).save(tmp_path / "encoder.safetensors")
    assert main(["check", str(path)]) == 0 and capsys.readouterr().out.startswith("good")
    path.write_bytes(path.read_bytes()[:-5])
    assert main(["check", str(path)]) == 1 and "truncated" in capsys.readouterr().out


def test_the_command_line_and_the_node_estimate_with_the_same_anchors():
    pairs = read_pairs()
    given = training_anchors(pairs)
    assert set(given.anchors) >= {pair.safe for pair in pairs} and not set(given.anchors) & set(given.mentions)
    assert set(given.near) <= set(given.anchors)
    assert {one.english for one in given.translations} <= {*given.anchors, *given.mentions}


def test_estimate_writes_where_it_is_called_and_never_into_the_library(monkeypatch, tmp_path, planted, capsys):
    """What it learned is stood in for; where it goes is the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("directions.sources.load_source", lambda *_: (None, None))
    monkeypatch.setattr("directions.sources.weights_hash", lambda _: "0" * 64)
    monkeypatch.setattr(sys.modules["directions.estimate"], "estimate", lambda *_, **__: planted.direction)
    before = sorted(LIBRARY.iterdir())
    assert main(["estimate", "some-model", "--name", "mine"]) == 0
    assert (tmp_path / "mine.safetensors").is_file() and sorted(LIBRARY.iterdir()) == before


def test_align_from_the_command_line(planted, tmp_path):
    path = planted.direction.save(tmp_path / "d.safetensors")
    save_file({"states": torch.stack([rows.mean(0) for rows in planted.states])}, tmp_path / "states.safetensors")
    assert (
        main(["align", str(path), str(tmp_path / "states.safetensors"), "--out", str(tmp_path / "a.safetensors")]) == 0
    )
    assert directions.load_aligned(tmp_path / "a.safetensors").slot.width == 32


def test_faults_are_one_line_on_standard_error(tmp_path, capsys):
    assert main(["estimate", str(tmp_path / "none"), "--name", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: no source model at")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m directions show" in capsys.readouterr().out
