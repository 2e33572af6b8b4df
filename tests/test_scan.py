import csv
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import torch

from directions import estimate
from directions.__main__ import main
from directions.prompts import Pair
from directions.scan import PART, Scan, Scorer, scan

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
    with pytest.raises(ValueError, match="no column 'text': it has 'id', 'prompt'"):
        scan(direction, Scan(prompts, tmp_path / "other", folder, "source", column="text"))


def write(prompts, path):
    """The rows of a CSV in another kind of file."""
    with prompts.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if path.suffix == ".parquet":
        texts = [row["prompt"] or None for row in rows]
        pyarrow.parquet.write_table(
            pyarrow.table({"image": [b"x"] * len(rows), "Caption": texts}), path, row_group_size=450
        )
    elif ".jsonl" in path.name:
        text = "".join(json.dumps({"n": i, "prompt": row["prompt"]}) + "\n" for i, row in enumerate(rows)).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    else:
        with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8-sig", newline="") as stream:
            table = csv.writer(stream, delimiter="\t" if path.name.endswith(".tsv") else ";")
            table.writerows([("Text", "n"), *((row["prompt"], i) for i, row in enumerate(rows))])
    return path


def parts_in(out):
    return {path.name: path.read_bytes() for path in out.glob("part-*.csv")}


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("directions.scan.PART", 100)


KINDS = ["p.tsv", "p.csv.gz", "p.jsonl", "p.jsonl.gz", "p.parquet"]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_scores(learned, prompts, tmp_path, name):
    folder, direction = learned
    expected = scan(direction, Scan(prompts, tmp_path / "csv", folder, "source"))
    assert scan(direction, Scan(write(prompts, tmp_path / name), tmp_path / "out", folder, "source")) == expected
    assert parts_in(tmp_path / "out") == parts_in(tmp_path / "csv")


@pytest.mark.parametrize("name", ["p.csv", *KINDS])
@pytest.mark.parametrize("lasts", [0, 1, 7])
def test_killed_after_any_part_the_same_command_goes_on(
    learned, prompts, tmp_path, monkeypatch, small_parts, name, lasts
):
    folder, direction = learned
    scan(direction, Scan(prompts, tmp_path / "whole", folder, "source"))
    task = Scan(write(prompts, tmp_path / name), tmp_path / "out", folder, "source")
    score, made = Scorer.__call__, []

    def killed(self, part, prompts):
        if len(made) == lasts:
            raise KeyboardInterrupt
        made.append(part.number)
        score(self, part, prompts)

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(Scorer, "__call__", killed)
        scan(direction, task)
    assert len(parts_in(task.out)) == lasts
    (task.out / "part-000009.csv").write_bytes(b"another machine's")  # which shares the folder, and took one
    done = {path: path.stat().st_mtime_ns for path in task.out.glob("part-*.csv")}
    monkeypatch.setattr("directions.scan._summary", lambda out, parts: len(parts))
    assert scan(direction, task) == 14
    assert parts_in(task.out) == parts_in(tmp_path / "whole") | {"part-000009.csv": b"another machine's"}
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done was done again"


@pytest.fixture
def shards(prompts, tmp_path):
    """A folder of Parquet files that hold the prompts between them."""
    whole = pyarrow.parquet.read_table(write(prompts, tmp_path / "whole.parquet"))
    for name, start, stop in (("a/1", 0, 250), ("a/2", 250, 251), ("b", 251, PART + 300)):
        path = tmp_path / "shards" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(whole.slice(start, stop - start), path, row_group_size=200)
    return tmp_path / "shards"


def test_a_folder_of_parquet_files_is_one_scan_that_names_file_and_row(learned, prompts, shards, tmp_path, small_parts):
    folder, direction = learned
    expected = scan(direction, Scan(prompts, tmp_path / "csv", folder, "source"))
    task = Scan(shards, tmp_path / "out", folder, "source")
    assert scan(direction, task) == expected
    rows, alone = scores(task.out), scores(tmp_path / "csv")
    places = (
        [("a/1.parquet", i) for i in range(250)] + [("a/2.parquet", 0)] + [("b.parquet", i) for i in range(PART + 49)]
    )
    assert [(row.pop("file"), int(row.pop("row"))) for row in rows] == places
    assert rows == [{name: value for name, value in row.items() if name != "row"} for row in alone]
    (shards / "b.parquet").unlink()
    with pytest.raises(ValueError, match="another scan .prompts differ"):
        scan(direction, task)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "p.csv is empty"), (b"prompt\n", "p.csv: no prompts in it"), (b"prompt\ncaf\xe9\n", "p.csv, line 2: not UTF-8"), (b"prompt\n" + b"x" * 131_073, "p.csv, line 2: a cell of more than 131,072"), (b"prompt,text\na,b\n", "say which with --column")],
)  # fmt: skip
def test_a_faulty_file_is_one_line_and_can_be_mended(learned, tmp_path, capsys, content, message):
    folder, direction = learned
    path = direction.save(tmp_path / "d.safetensors")
    (tmp_path / "p.csv").write_bytes(content)
    arguments = ["scan", str(tmp_path / "p.csv"), "--direction", str(path), "--source", str(folder), "--out", str(tmp_path / "out")]  # fmt: skip
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and error.count("\n") == 1
    (tmp_path / "p.csv").write_text("prompt\nw1 knife\n")
    assert main(arguments) == 0 and json.loads(capsys.readouterr().out)["prompts"] == 1


def test_the_column_is_asked_for_by_name(learned, tmp_path, capsys):
    folder, direction = learned
    path = direction.save(tmp_path / "d.safetensors")
    (tmp_path / "p.csv").write_text("Prompt;text\nw1 knife;w2 spoon\n")
    arguments = ["scan", str(tmp_path / "p.csv"), "--direction", str(path), "--source", str(folder), "--out", str(tmp_path / "out")]  # fmt: skip
    assert main([*arguments, "--column", "TEXT"]) == 0
    assert [row["prompt"] for row in scores(tmp_path / "out")] == ["w2 spoon"]
    assert main([*arguments, "--column", "text"]) == 0, "the same column in other letters is another scan"


def test_ray_gives_the_same_bytes(learned, prompts, tmp_path, small_parts):
    folder, direction = learned
    packed = write(prompts, tmp_path / "p.csv.gz")
    expected = scan(direction, Scan(packed, tmp_path / "here", folder, "source"))
    assert scan(direction, Scan(packed, tmp_path / "ray", folder, "source"), ray="local", workers=2) == expected
    here, there = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("here", "ray"))
    assert here == there and len(here) == 14 + 2


def test_ray_goes_on_with_what_is_missing_of_a_folder_of_parquet_files(learned, shards, tmp_path, small_parts):
    folder, direction = learned
    task = Scan(shards, tmp_path / "out", folder, "source")
    expected = scan(direction, task)
    whole = parts_in(task.out)
    gone = [task.out / f"part-{number:06d}.csv" for number in (0, 3, 4, 13)]
    kept = {path: path.stat().st_mtime_ns for path in task.out.iterdir() if path not in gone}
    for path in gone:
        path.unlink()
    assert scan(direction, task, ray="local", workers=2) == expected
    assert parts_in(task.out) == whole and {path: path.stat().st_mtime_ns for path in kept} == kept


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
