"""Files of prompts as people keep them: one reader for all of them, whole or in parts."""

import codecs
import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from directions.prompt_files import Part, Position, find_parts, prompt_column, read_parts, read_rows
from harness.server import ROOT


def table(delimiter=",", header=("id", "prompt"), encoding="utf-8"):
    def written(prompts):
        text = io.StringIO()
        rows = csv.writer(text, delimiter=delimiter)
        rows.writerow(header)
        rows.writerows((i, prompt) for i, prompt in enumerate(prompts))
        return text.getvalue().encode(encoding)

    return written


def json_lines(prompts):
    return "".join(json.dumps({"id": i, "prompt": prompt}) + "\n" for i, prompt in enumerate(prompts)).encode()


def json_lines_as_they_are(prompts):
    return "".join(json.dumps({"prompt": prompt}, ensure_ascii=False) + "\r\n" for prompt in prompts).encode()


def parquet(prompts, **how):
    out = io.BytesIO()
    rows = pyarrow.table({"id": list(range(len(prompts))), "prompt": pyarrow.array(prompts, pyarrow.string())})
    pyarrow.parquet.write_table(rows, out, **how)
    return out.getvalue()


TEXTS = {
    "comma.csv": table(),
    "semicolon.csv": table(";"),
    "tab.csv": table("\t"),
    "mark.csv": table(encoding="utf-8-sig"),
    "title.CSV": table(";", ("id", "Prompt")),
    "tab.tsv": table("\t", ("id", "CAPTION")),
    "lines.jsonl": json_lines,
    "lines.ndjson": json_lines_as_they_are,
    "lines.json": json_lines,
}
PARQUET = {"rows.parquet": parquet, "groups.parquet": lambda prompts: parquet(prompts, row_group_size=7)}
FORMATS = {**TEXTS, **{f"{name}.gz": lambda prompts, to=to: gzip.compress(to(prompts)) for name, to in TEXTS.items()}, **PARQUET}  # fmt: skip
LINES = {
    "plain.txt": lambda prompts: "".join(prompt + "\n" for prompt in prompts).encode(),
    "mark.txt": lambda prompts: "".join(prompt + "\r\n" for prompt in prompts).encode("utf-8-sig"),
    "last.txt.gz": lambda prompts: gzip.compress("\n".join(prompts).encode()),
}

#: A NUL is in no text; without white space round it, which is no part of a prompt. Blank ones are rows too.
prompts_of_any_kind = st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(str.strip)
prompts_of_a_line = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r")).map(str.strip)


def texts(path, **how):
    return [row.text for row in read_rows(path, **how)]


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=40)
@given(prompts=st.lists(prompts_of_any_kind, min_size=1))
def test_any_prompts_read_back_the_same_in_every_format(name, prompts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(FORMATS[name](prompts))
        assert texts(path) == prompts


@pytest.mark.parametrize("name", LINES)
@settings(deadline=None, max_examples=40)
@given(prompts=st.lists(prompts_of_a_line, min_size=1).filter(lambda prompts: prompts[-1]))
def test_any_prompts_of_a_line_read_back_the_same(name, prompts):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(LINES[name](prompts))
        assert texts(path) == prompts


PROMPTS = [("" if i % 11 == 5 else f"a house, {i}; and\n\ta dog" if i % 3 else f"naïve “{i}”") for i in range(100)]


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 120), done=st.sets(st.integers(0, 99)))
def test_parts_of_any_size_give_the_same_prompts_in_order(tmp_path_factory, name, size, done):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(FORMATS[name](PROMPTS))
    parts = list(find_parts(path, None, size))
    assert [part.number for part in parts] == list(range(len(parts)))
    assert [part.start.row for part in parts] == list(range(0, len(PROMPTS), size))
    assert all(part.rows == size for part in parts[:-1]) and sum(part.rows for part in parts) == len(PROMPTS)
    missing = [part for part in parts if part.number not in done]
    for part, prompts in read_parts(path, None, missing):
        assert part is missing.pop(0) and prompts == PROMPTS[part.start.row : part.start.row + part.rows]
    assert not missing


@pytest.mark.parametrize("name", LINES)
def test_a_blank_line_of_a_txt_is_a_row_without_a_prompt(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(LINES[name](["one", "", "  ", "two "]))
    assert texts(path) == ["one", "", "", "two"]
    parts = list(find_parts(path, None, 3))
    assert [(part.start.row, part.rows) for part in parts] == [(0, 3), (3, 1)]
    assert dict(read_parts(path, None, parts)) == {parts[0]: ["one", "", ""], parts[1]: ["two"]}


@pytest.mark.parametrize("text", ["\n\nprompt,id\n\na cat,1\n\n\n,2\na dog\n\n", '{"prompt": "a cat"}\n\n{"id": 2}\n  \n{"prompt": "a dog"}\n'])  # fmt: skip
def test_a_blank_line_of_a_table_is_no_row_and_an_empty_cell_is_one(tmp_path, text):
    path = tmp_path / ("p.jsonl" if text.startswith("{") else "p.csv")
    path.write_text(text)
    assert texts(path) == ["a cat", "", "a dog"]
    assert [part.rows for part in find_parts(path, None, 2)] == [2, 1]


# --- columns


@pytest.mark.parametrize("header", ["Prompt", "caption", " TEXT ", "prompts", "Sensitive Prompt", "adv_prompt"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_usual_names_of_the_column_are_known_in_any_case(tmp_path, header, delimiter):
    path = tmp_path / "p.csv"
    path.write_text(f'label{delimiter}{header}{delimiter}"note, or; more"\nx{delimiter}a cat{delimiter}y\n')
    assert texts(path) == ["a cat"] and prompt_column(path) == header.strip()


def test_several_columns_that_could_be_it_are_asked_for_by_name(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("Caption,prompt,Text,n\na,b,c,d\n")
    with pytest.raises(ValueError, match="p.csv has several columns of prompts: 'Caption', 'prompt', 'Text'; say which with --column, such as --column 'Caption'"):  # fmt: skip
        texts(path)
    with pytest.raises(ValueError, match="say which with --benign-column"):
        texts(path, option="--benign-column")
    assert texts(path, column="Text") == ["c"] and texts(path, column="caption") == ["a"] and texts(path, column="n") == ["d"]  # fmt: skip
    path.write_text("prompt,PROMPT,a,a\n1,2,3,4\n")
    assert texts(path, column="PROMPT") == ["2"]
    for name in ("Prompt", "a"):
        with pytest.raises(ValueError, match=f"p.csv has 2 columns {name!r}: give each a name of its own"):
            texts(path, column=name)


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl", "p.parquet"])
def test_a_file_without_such_a_column_says_what_it_has(tmp_path, name):
    path = tmp_path / name
    content = {"utterance": ["a cat"], "n": ["1"]}
    if name == "p.parquet":
        pyarrow.parquet.write_table(pyarrow.table(content), path)
    else:
        path.write_text("utterance,n\na cat,1\n" if name == "p.csv" else '{"utterance": "a cat", "n": "1"}\n')
    with pytest.raises(ValueError, match=r"has no column of prompts: it has 'utterance', 'n'. Say which with --column; without it one of these is known: 'prompt'"):  # fmt: skip
        texts(path)
    with pytest.raises(ValueError, match=r"has no column 'x': it has 'utterance', 'n'"):
        texts(path, column="x")
    assert texts(path, column="Utterance") == ["a cat"]


def test_the_delimiter_is_the_one_that_shows_the_column(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("number, place, time;what it says\n1;a cat, a dog\n")
    assert texts(path, column="what it says") == ["a cat, a dog"]
    (tmp_path / "p.tsv").write_text("prompt\na cat, a dog; a bird\n")
    assert texts(tmp_path / "p.tsv") == ["a cat, a dog; a bird"]


def test_the_other_columns_come_with_each_row(tmp_path):
    rows = [
        {"Prompt": " a cat ", "Seed": 4294967295, "tags": ["x", "y"], "image": None, "good": True, "more": {"a": 1}},
        {"Prompt": "a dog", "Late": "1"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_rows(tmp_path / "p.jsonl")
    assert first == ("a cat", {"prompt": " a cat ", "seed": "4294967295", "tags": ("x", "y"), "image": "", "good": "True"}, "p.jsonl, line 1")  # fmt: skip
    assert second.fields == {"prompt": "a dog", "late": "1"}
    picture = pyarrow.array([b"\x89PNG"])
    pyarrow.parquet.write_table(
        pyarrow.table({"Prompt": ["a cat"], "a.b": [7], "tags": [["x"]], "image": picture, "n": [None]}),
        tmp_path / "p.parquet",
    )
    (row,) = read_rows(tmp_path / "p.parquet")
    assert row == ("a cat", {"prompt": "a cat", "a.b": "7", "tags": ("x",), "n": ""}, "p.parquet, row 1")
    (tmp_path / "p.csv").write_text("Prompt ,n\na cat,1\na dog\n")
    assert [row.fields for row in read_rows(tmp_path / "p.csv")] == [{"prompt": "a cat", "n": "1"}, {"prompt": "a dog", "n": ""}]  # fmt: skip
    (tmp_path / "p.txt").write_text("a cat\n")
    assert list(read_rows(tmp_path / "p.txt")) == [("a cat", {}, "p.txt, line 1")]


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_every_kind_of_text_in_parquet(tmp_path, kind):
    prompts = ["a cat", None, "a dog", "a cat"]
    column = pyarrow.array(prompts).dictionary_encode() if kind == "dictionary" else pyarrow.array(prompts, getattr(pyarrow, kind)())  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table({"x.y": column}), tmp_path / "p.parquet")
    assert texts(tmp_path / "p.parquet", column="x.y") == ["a cat", "", "a dog", "a cat"]


# --- folders


def test_a_folder_of_parquet_files_is_read_file_by_file(tmp_path):
    folder = tmp_path / "set"
    for name, prompts in {"b.parquet": ["three"], "a/1.parquet": ["one", "two"], "a/2.parquet": [], ".hidden.parquet": ["x"], "_x.parquet": ["x"]}.items():  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(parquet(prompts))
    (folder / "README.txt").write_text("no prompt\n")
    assert [(row.text, row.where) for row in read_rows(folder)] == [("one", "a/1.parquet, row 1"), ("two", "a/1.parquet, row 2"), ("three", "b.parquet, row 1")]  # fmt: skip
    parts = list(find_parts(folder, None, 1))
    assert [(part.number, part.file, part.start.row, part.rows) for part in parts] == [(0, "a/1.parquet", 0, 1), (1, "a/1.parquet", 1, 1), (2, "b.parquet", 0, 1)]  # fmt: skip
    assert [prompts for _, prompts in read_parts(folder, None, parts[1:])] == [["two"], ["three"]]
    (folder / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="c.parquet can't be read as Parquet"):
        texts(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty has no Parquet files in it"):
        texts(tmp_path / "empty")


# --- faults: which file, which row, what to do


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"", "p.csv is empty"),
        ("p.csv", codecs.BOM_UTF8 + b"\n \n", "p.csv is empty"),
        ("p.txt", b"", "p.txt is empty"),
        ("p.jsonl", b"\n", "p.jsonl is empty"),
        ("p.csv.gz", gzip.compress(b"", mtime=0), "p.csv.gz is empty"),
        ("p.csv", "id,prompt\n1,a café\n2,a naïve dog\n".encode("cp1252"), r"p.csv, line 2: not UTF-8 text \(byte 0xe9\). Save the file as UTF-8, or convert it from what it is, such as: iconv -f WINDOWS-1252 -t UTF-8"),
        ("p.txt", "a cat\na café".encode("latin-1"), "p.txt, line 2: not UTF-8 text"),
        ("p.jsonl", '{"prompt": "café"}'.encode("latin-1"), "p.jsonl, line 1: not UTF-8 text"),
        ("p.csv.gz", gzip.compress("prompt\né\n".encode("latin-1"), mtime=0), "p.csv.gz, line 2: not UTF-8 text"),
        ("p.csv", "prompt\na cat\n".encode("utf-16"), "p.csv, line 1: not UTF-8 but UTF-16 text. Save the file as UTF-8, or convert it from what it is, such as: iconv -f UTF-16 -t UTF-8"),
        ("p.txt", "a cat\n".encode("utf-16-le"), "p.txt, line 1: a NUL character"),
        ("p.jsonl", b'{"prompt": "a\\u0000b"}\n', "p.jsonl, line 1: a NUL character"),
        ("p.jsonl", b'{"prompt": "a \\ud800 b"}\n', "p.jsonl, line 1: half a surrogate pair"),
        ("p.csv", b"prompt\na cat\n" + b"x" * 131_073 + b"\n", "p.csv, line 3: a cell of more than 131,072 characters"),
        ("p.csv", b'prompt\n"a cat\n' + b"and a dog\n" * 20_000, "p.csv, line 2: a cell of more than 131,072 characters; is a quotation mark left open"),
        ("p.txt", b"a cat\n" + b"x" * 131_073, "p.txt, line 2: a prompt of more than 131,072 characters"),
        ("p.jsonl", json.dumps({"prompt": "x" * 131_073}).encode(), "p.jsonl, line 1: a prompt of more than 131,072 characters"),
        ("p.parquet", parquet(["a cat", "x" * 131_073]), "p.parquet, row 2: a prompt of more than 131,072 characters"),
        ("p.txt", b"a cat\n" + b"x" * (17 << 20), "p.txt, line 2: a line of more than 16 MB"),
        ("p.txt", b"a cat\ra dog\ra bird\r", "p.txt, line 1: lines end in a carriage return alone"),
        ("p.csv", b"prompt\ra cat\ra dog\r", "p.csv, line 1: lines end in a carriage return alone"),
        ("p.csv", b"prompt\na red, fast car\n", "p.csv, line 2: 2 cells where the header has 1; put a prompt with ',' in it between quotation marks"),
        ("p.jsonl", b'{"prompt": "a cat"}\n["a dog"]\n', "p.jsonl, line 2: not a JSON object"),
        ("p.jsonl", b'[\n  {"prompt": "a cat"}\n]\n', r"p.jsonl, line 1: not a JSON object.*one object a line.*jq -c '\.\[\]'"),
        ("p.jsonl", b'{"prompt": ' + b"[" * 100_000, "p.jsonl, line 1: not a JSON object"),
        ("p.jsonl", b'{"prompt": ["a cat", "a dog"]}\n', r"p.jsonl, line 1: the column 'prompt' holds \['a cat', 'a dog'\], not text"),
        ("p.jsonl", b'{"prompt": "a cat"}\n{"prompt": 7}\n', "p.jsonl, line 2: the column 'prompt' holds 7, not text"),
        ("p.csv.gz", gzip.compress(b"prompt\n" + bytes(range(32, 127)) * 99, mtime=0)[:-20], "p.csv.gz, line 2: damaged or cut short"),
        ("p.parquet", b"", "p.parquet is empty"),
        ("p.parquet", b"PAR1 and no more", "p.parquet can't be read as Parquet"),
        ("p.parquet", parquet(["a cat"])[:-30], "p.parquet can't be read as Parquet"),
        ("p.xlsx", b"PK", r"p.xlsx: not a kind of file that prompts are read from: \.csv, \.tsv, \.txt, \.jsonl, .*\.parquet"),
        ("prompts", b"a cat\n", "prompts: not a kind of file"),
    ],
)  # fmt: skip
def test_a_fault_names_the_file_the_row_and_what_to_do(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        texts(path)
    with pytest.raises(ValueError, match=message):
        list(read_parts(path, None, list(find_parts(path, None, 1000))))


def test_parquet_faults_name_the_row(tmp_path):
    path = tmp_path / "p.parquet"
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"a\xe9")])  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table({"prompt": broken}), path)
    with pytest.raises(ValueError, match="p.parquet, row 2: not UTF-8 text"):
        texts(path)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": [1, 2]}), path)
    with pytest.raises(ValueError, match="p.parquet: the column 'prompt' holds int64, not text"):
        texts(path)


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of prompts .*none.csv"):
        texts(tmp_path / "none.csv")


def test_a_prompt_as_long_as_may_be(tmp_path):
    longest = "x" * 131_072
    for name, write in {**FORMATS, **LINES}.items():
        (tmp_path / name).write_bytes(write(["a", longest]))
        assert texts(tmp_path / name) == ["a", longest], name


def test_a_gz_that_a_browser_unpacked_and_one_that_lost_its_name(tmp_path):
    (tmp_path / "p.csv.gz").write_bytes(table()(["a cat"]))
    (tmp_path / "p.csv").write_bytes(gzip.compress(table()(["a dog"])))
    assert texts(tmp_path / "p.csv.gz") == ["a cat"] and texts(tmp_path / "p.csv") == ["a dog"]


def test_without_pyarrow_parquet_names_the_install_command_and_the_rest_is_read(tmp_path):
    for name in ("p.parquet", "p.csv"):
        (tmp_path / name).write_bytes(FORMATS["rows.parquet" if name == "p.parquet" else "comma.csv"](["a cat"]))
    program = (
        "import sys\nfrom directions.prompt_files import read_rows\n"
        "print([row.text for row in read_rows(sys.argv[1] + '/p.csv')])\n"
        "try: list(read_rows(sys.argv[1] + '/p.parquet'))\nexcept ImportError as error: print(error)\n"
    )
    extras = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "without_extras")}
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, env=extras, capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "['a cat']\nreading Parquet needs pyarrow: pip install pyarrow\n"


# --- memory, and work


@pytest.mark.parametrize("name", ["comma.csv", "lines.jsonl", "comma.csv.gz", "groups.parquet", "plain.txt"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    def peak(count):
        path = tmp_path / f"{count}-{name}"
        path.write_bytes({**FORMATS, **LINES}[name]([f"a house on street {i} in the rain" for i in range(count)]))
        tracemalloc.start()
        rows = 0
        for _ in read_rows(path):
            rows += 1
        for _, prompts in read_parts(path, None, find_parts(path, None, 100)):
            rows += len(prompts)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == 2 * count
        return found

    peak(100)
    # What is left is the list of parts, some 200 bytes for each hundred rows.
    assert peak(20_000) < peak(2_000) + 400_000


@pytest.mark.parametrize("name", ["comma.csv.gz", "rows.parquet"])
def test_parts_in_order_are_read_in_one_pass(tmp_path, name, monkeypatch):
    """gzip has to be unpacked from its start and a row group from its own: not once for each part."""
    path = tmp_path / name
    path.write_bytes(FORMATS[name](PROMPTS))
    parts = list(find_parts(path, None, 10))
    opened = []

    def count(owner, function):
        inner = getattr(owner, function)
        monkeypatch.setattr(owner, function, lambda *how, **more: opened.append(how) or inner(*how, **more))

    count(Path, "open")
    count(pyarrow.parquet.ParquetFile, "__init__")
    assert len(list(read_parts(path, None, parts[2:5] + parts[7:]))) == 6
    assert len(opened) == 2, "once for the header and once for the rows"


def test_a_part_says_where_it_begins(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes(b'id,prompt\n1,"a\ncat"\n2,a dog\n3,a bird\n')
    assert list(find_parts(path, None, 2)) == [Part(0, "", Position(0, 10, 1), 2), Part(1, "", Position(2, 28, 4), 1)]
    path.write_bytes(b'id,prompt\n1,"a\ncat"\n2,a dog\n3,\xff\n')
    with pytest.raises(ValueError, match="p.csv, line 5: not UTF-8 text"):
        list(read_parts(path, None, [Part(1, "", Position(2, 28, 4), 1)]))
