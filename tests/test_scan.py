import csv
import json

import pytest
import torch

from directions import estimate
from directions.__main__ import main
from directions.prompts import Pair
from directions.scan import PART, Scan, find_parts, read_part, scan

WORDS = [f"w{i}" for i in range(40)]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A tiny language model in a folder, and a direction that was learned in it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(["<s>", "<unk>", "knife", "spoon", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pairs = [
        Pair(
            "violence",
            f"t{i % 8}",
            "caption",
            f"{WORDS[i]} spoon {WORDS[i * 7 % 40]}",
            f"{WORDS[i]} knife {WORDS[i * 7 % 40]}",
        )
        for i in range(40)
    ]
    anchors = [" ".join(WORDS[(i * k + k) % 40] for k in (1, 3, 5, 11)) for i in range(120)]
    return folder, estimate(model, tokenizer, pairs, anchors, layer=1)


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "prompt"])
        for i in range(PART + 300):
            words = [WORDS[i % 40], "knife" if i % 3 == 0 else "spoon", WORDS[i * 7 % 40]]
            table.writerow([i, "" if i == 5 else "\n".join(words) if i % 10 == 0 else ", ".join(words)])
    return path


def scores(out):
    rows = []
    for path in sorted(out.glob("part-*.csv")):
        with path.open(encoding="utf-8", newline="") as stream:
            rows += csv.DictReader(stream)
    return rows


def test_every_prompt_is_scored_once_and_in_order(learned, prompts, tmp_path):
    folder, direction = learned
    summary = scan(direction, Scan(prompts, tmp_path / "out", folder, "source", budget=0.05))
    rows = scores(tmp_path / "out")
    with prompts.open(encoding="utf-8", newline="") as stream:
        asked = [row["prompt"] for row in csv.DictReader(stream)]
    assert [int(row["row"]) for row in rows] == list(range(PART + 300)) and [row["prompt"] for row in rows] == asked
    assert rows[5]["score"] == "" and rows[5]["flagged"] == "", "an empty prompt got a score"
    unsafe, safe = (
        [float(r["score"]) for r in rows if r["score"] and ("knife" in r["prompt"]) == which] for which in (True, False)
    )
    assert sum(unsafe) / len(unsafe) > sum(safe) / len(safe) + 1
    assert summary["prompts"] == PART + 300 and summary["flagged"] == sum(row["flagged"] == "1" for row in rows) > 0


def test_an_encoder_scores_after_it_is_aligned(learned, prompts, tmp_path):
    folder, direction = learned
    scan(direction, Scan(prompts, tmp_path / "out", folder, "encoder"))
    assert len(scores(tmp_path / "out")) == PART + 300 and (tmp_path / "out" / "aligned.safetensors").is_file()


def test_a_killed_scan_goes_on_with_what_is_missing(learned, prompts, tmp_path):
    folder, direction = learned
    out = tmp_path / "out"
    task = Scan(prompts, out, folder, "source")
    scan(direction, task)
    whole = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "part-000001.csv").unlink()
    first = (out / "part-000000.csv").stat().st_mtime_ns
    scan(direction, task)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == whole
    assert (out / "part-000000.csv").stat().st_mtime_ns == first, "what was done was done again"


def test_a_folder_holds_one_scan(learned, prompts, tmp_path):
    folder, direction = learned
    scan(direction, Scan(prompts, tmp_path / "out", folder, "source"))
    with pytest.raises(ValueError, match="another scan .budget differ"):
        scan(direction, Scan(prompts, tmp_path / "out", folder, "source", budget=0.5))
    with pytest.raises(ValueError, match="no column 'text': it has id, prompt"):
        scan(direction, Scan(prompts, tmp_path / "other", folder, "source", column="text"))


def test_parts_are_found_and_read_without_the_rest(prompts, tmp_path):
    parts = list(find_parts(prompts, "prompt"))
    assert [part.rows for part in parts] == [PART, 300]
    assert read_part(prompts, "prompt", parts[1])[0].split(", ")[0] == WORDS[PART % 40]
    lines = tmp_path / "prompts.txt"
    lines.write_text("one\ntwo\n", encoding="utf-8-sig")
    (part,) = find_parts(lines, "prompt")
    assert read_part(lines, "prompt", part) == ["one", "two"]


def test_ray_gives_the_same_bytes(learned, prompts, tmp_path):
    pytest.importorskip("ray.data", reason="the optional extra isn't installed: pip install 'ray[data]'")
    folder, direction = learned
    scan(direction, Scan(prompts, tmp_path / "here", folder, "source"))
    scan(direction, Scan(prompts, tmp_path / "ray", folder, "source"), ray="local", workers=2)
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "ray"))
    assert here == there


def test_without_ray_it_names_the_install_command(learned, prompts, tmp_path, monkeypatch, capsys):
    folder, direction = learned
    path = direction.save(tmp_path / "d.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    arguments = [
        "scan",
        str(prompts),
        "--direction",
        str(path),
        "--source",
        str(folder),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--ray", "local"]) == 2
    assert "pip install 'ray[data]'" in capsys.readouterr().err
    assert main(arguments) == 0, "it doesn't score without Ray either"
    assert json.loads(capsys.readouterr().out)["prompts"] == PART + 300
