import json

import pytest
import torch
from safetensors.torch import save_file

import directions
from directions.__main__ import main


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


def test_align_from_the_command_line(planted, tmp_path):
    path = planted.direction.save(tmp_path / "d.safetensors")
    save_file({"states": torch.stack([rows.mean(0) for rows in planted.states])}, tmp_path / "states.safetensors")
    assert main(["align", str(path), str(tmp_path / "states.safetensors"), "--out", str(tmp_path / "a.safetensors")]) == 0
    assert directions.load_aligned(tmp_path / "a.safetensors").width == 32


def test_faults_are_one_line_on_standard_error(tmp_path, capsys):
    assert main(["estimate", str(tmp_path / "none"), "--name", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: no source model at")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m directions show" in capsys.readouterr().out
