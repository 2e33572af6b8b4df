"""What evaluate reads, how it edits a workflow, and what it counts, without a server."""

import gzip
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from directions.__main__ import main
from directions.evaluate import plan
from directions.evaluate.client import GraphError, Remote, ServerLost, Workflow
from directions.evaluate.client import _pictures as entry_pictures
from directions.evaluate.figures import summarise
from directions.evaluate.generate import Job, finished, generate
from directions.evaluate.judges import load_judge
from directions.evaluate.judging import judge_all, list_pictures
from directions.evaluate.prompts import Prompt, read_prompts
from directions.evaluate.report import as_json, text, write
from tests.pictures import colour_judge, plain

# --- prompts


@pytest.mark.parametrize(
    ("name", "table", "expected"),
    [
        ("i2p.csv", 'prompt,categories,hard,sd_seed\na fight,"violence, shocking",0,4294967295\n', Prompt("a fight", ("violence", "shocking"), 4294967295)),
        ("mma.csv", "target_prompt,adv_prompt,clean_prompt\na kiss,k1ss embrace,a hug\n", Prompt("k1ss embrace")),
        ("ring-a-bell.csv", ",sensitive prompt,evaluation_seed\n0,brawl tavern blood,1404\n", Prompt("brawl tavern blood", (), 1404)),
        ("unlearn.csv", "case_number,prompt,evaluation_seed,evaluation_guidance\n7,a couple "
            "kissing,12.0,7.5\n", Prompt("a couple kissing", (), 12)),
        ("t2v.csv", "id,Prompt,Class\n1,a man shouting,Violence\n", Prompt("a man shouting", ("Violence",))),
        ("3.txt", "a man shouting\n\n", Prompt("a man shouting", ("3",))),
        ("own.tsv", "prompt\tcategory\tseed\texpected\na dog beside a bomb\tweapons\t\tdog; bomb\n", Prompt("a dog beside a bomb", ("weapons",), None, ("dog", "bomb"))),
        ("coco.csv", "\ufeffcaption\na vase of tulips\n", Prompt("a vase of tulips")),
        ("own.csv", "Text;Category;Seed\na dog beside a bomb;weapons, war;7\n", Prompt("a dog beside a bomb", ("weapons", "war"), 7)),
        ("own.jsonl", '{"prompt": "a dog beside a bomb", "categories": ["weapons", "war"], "seed": 18446744073709551615, "expected": "dog; bomb"}\n',
         Prompt("a dog beside a bomb", ("weapons", "war"), 18446744073709551615, ("dog", "bomb"))),
        ("own.ndjson", '{"caption": "a dog", "seed": null}\n', Prompt("a dog")),
    ],
)  # fmt: skip
def test_the_public_sets_columns_are_known(tmp_path, name, table, expected):
    (tmp_path / name).write_text(table, encoding="utf-8")
    assert read_prompts(tmp_path / name) == [expected]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("words,label\na,b\n", "p.csv has no column of prompts: it has 'words', 'label'. Say which with --column; without it one of these is known: 'prompt', 'prompts', 'cap"),
        ("prompt,adv_prompt\na,b\n", "p.csv has several columns of prompts: 'prompt', 'adv_prompt'; say which with --column, such as"),
        ("", "p.csv is empty"),
        ("prompt\n", "p.csv: no prompts in it"),
        ("prompt,seed\na,1\n ,2\n", "p.csv, line 3: no prompt in this row"),
        ("prompt,seed\na,-1\n", "p.csv, line 2: the seed '-1' is not a whole number"),
        ("prompt,seed\na,nan\n", "the seed 'nan' is not"),
    ],
)  # fmt: skip
def test_a_file_of_prompts_that_is_none(tmp_path, table, message):
    (tmp_path / "p.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "p.csv")


def test_columns_that_are_known_are_read_from_parquet_too(tmp_path):
    columns = {
        "Prompt": ["a fight", "a dog"],
        "categories": ["violence, shocking", None],
        "sd_seed": [4294967295, None],
    }
    columns |= {"expected": [[], ["dog", "cat"]], "image": [b"x", b"y"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "i2p.parquet")
    wanted = [Prompt("a fight", ("violence", "shocking"), 4294967295), Prompt("a dog", (), None, ("dog", "cat"))]
    assert read_prompts(tmp_path / "i2p.parquet") == wanted and read_prompts(tmp_path) == wanted


def test_a_gzipped_file_is_read_like_what_is_in_it(tmp_path):
    (tmp_path / "3.txt.gz").write_bytes(gzip.compress(b"a man shouting\n\n"))
    assert read_prompts(tmp_path / "3.txt.gz") == [Prompt("a man shouting", ("3",))]
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(b"prompt,seed\na dog,3\n"))
    assert read_prompts(tmp_path / "p.csv.gz") == [Prompt("a dog", (), 3)]


def test_the_column_can_be_named(tmp_path):
    (tmp_path / "p.csv").write_text("target_prompt,Adv_Prompt,prompt\na,b,c\n")
    assert [read_prompts(tmp_path / "p.csv", name)[0].text for name in ("target_prompt", "adv_prompt", "prompt")] == ["a", "b", "c"]  # fmt: skip


# --- the workflow


def graph():
    return {
        "1": {"class_type": "Load", "inputs": {}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a photo of {prompt}, sharp"}},
        "3": {
            "class_type": "SafetyDirectionApply",
            "inputs": {"conditioning": ["2", 0], "aligned": ["9", 0], "mode": "gate", "alpha": 1.0, "categories": ""},
        },
        "4": {
            "class_type": "SafetyDirectionApply",
            "inputs": {"conditioning": ["3", 0], "aligned": ["9", 0], "mode": "gate", "alpha": 1.0, "categories": ""},
        },
        "5": {
            "class_type": "SafetyDirectionGuard",
            "inputs": {"model": ["1", 0], "aligned": ["9", 0], "mode": "gate", "alpha": 1.0, "categories": ""},
        },
        "6": {"class_type": "KSampler", "inputs": {"model": ["5", 0], "positive": ["4", 0], "seed": 5, "cfg": 3.0}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "x"}},
        "8": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}},
        "9": {"class_type": "SafetyDirectionAlign", "inputs": {"direction": ["10", 0], "method": "auto"}},
    }


def test_prompt_seed_and_steering_go_where_they_belong():
    drawn = Workflow(graph()).graph("a {curly} dog", 77, {"mode": "add", "alpha": 3.0}, {"9.method": "svd"})
    assert drawn["2"]["inputs"]["text"] == "a photo of a {curly} dog, sharp"
    assert drawn["6"]["inputs"] == {"model": ["5", 0], "positive": ["4", 0], "seed": 77, "cfg": 3.0}
    assert all(drawn[node]["inputs"]["mode"] == "add" and drawn[node]["inputs"]["alpha"] == 3.0 for node in "345")
    assert drawn["9"]["inputs"]["method"] == "svd"


def test_without_steering_its_nodes_are_routed_round():
    drawn = Workflow(graph()).graph("a dog", 1, None)
    assert not {"3", "4", "5"} & set(drawn)
    assert drawn["6"]["inputs"]["model"] == ["1", 0] and drawn["6"]["inputs"]["positive"] == ["2", 0]


def test_without_steering_the_one_node_stays_only_where_its_alignment_is_used():
    one = {
        "1": graph()["1"],
        "one": {"class_type": "SafetyDirection", "inputs": {"model": ["1", 0], "clip": ["1", 1], "mode": "gate"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["one", 1], "text": "{prompt}"}},
        "6": {"class_type": "KSampler", "inputs": {"model": ["one", 0], "positive": ["2", 0], "seed": 5}},
    }
    drawn = Workflow(one).graph("a dog", 1, None)
    assert set(drawn) == {"1", "2", "6"}
    assert (drawn["2"]["inputs"]["clip"], drawn["6"]["inputs"]["model"]) == (["1", 1], ["1", 0])
    inspect = {"class_type": "SafetyDirectionInspect", "inputs": {"conditioning": ["2", 0], "aligned": ["one", 2]}}
    assert set(Workflow(one | {"look": inspect}).graph("a dog", 1, None)) == {"1", "2", "6", "one", "look"}


@given(st.permutations(range(4)), st.integers(0, 15))
def test_a_chain_of_nodes_keeps_its_order_without_the_steering_ones(order, steering):
    """Nodes 0 to 3 in a chain, listed in any order; those whose bit is set steer, and go."""
    kinds = ["SafetyDirectionApply" if steering >> i & 1 else "ConditioningZeroOut" for i in range(4)]
    chain = {
        str(i): {"class_type": kinds[i], "inputs": {"conditioning": ["2nd", 0] if i == 0 else [str(i - 1), 0]}}
        for i in order
    }
    ends = {
        "2nd": {"class_type": "CLIPTextEncode", "inputs": {"text": "{prompt}"}},
        "end": {"class_type": "KSampler", "inputs": {"positive": ["3", 0], "seed": 1}},
        "also": graph()["3"],
    }
    drawn = Workflow({**chain, **ends}).graph("a", 1, None)
    left = ["2nd", *(str(i) for i in range(4) if not steering >> i & 1)]
    assert set(drawn) == {*left, "end"}
    links = [drawn[node]["inputs"]["conditioning"] for node in left[1:]] + [drawn["end"]["inputs"]["positive"]]
    assert links == [[node, 0] for node in left]


def test_the_workflow_itself_stays_as_it_was():
    original = graph()
    workflow = Workflow(original)
    first = workflow.graph("a", 1, None)
    workflow.graph("b", 2, {"alpha": 9.0})
    assert original == graph() and workflow.graph("a", 1, None) == first


def test_pictures_are_previewed_rather_than_saved_on_the_server():
    drawn = Workflow(graph()).graph("a", 1, None)
    assert drawn["7"] == {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}} and "8" not in drawn
    previews = graph()
    del previews["7"]
    assert "8" in Workflow(previews).graph("a", 1, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {"nodes": [], "links": []}, r"saved for the web page: in ComfyUI choose Workflow > Export \(API\)"),
        (lambda g: [1], "and it is none"),
        (
            lambda g: g | {"2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog"}}},
            "no text in it says {prompt}",
        ),
        (lambda g: g | {"6": {"class_type": "KSampler", "inputs": {"seed": ["1", 0]}}}, "called seed or noise_seed"),
        (lambda g: {key: node for key, node in g.items() if key not in "345"}, "none of the steering nodes"),
    ],
)
def test_a_workflow_that_can_not_be_used(change, message):
    with pytest.raises(ValueError, match=message):
        Workflow(change(graph()))


@pytest.mark.parametrize(
    ("steering", "changes", "message"),
    [
        (
            {"strength": 1},
            {},
            r"node 3 \(SafetyDirectionApply\) has no input 'strength'; it has conditioning, aligned, mode",
        ),
        (None, {"12.x": 1}, "there is no node '12'"),
    ],
)
def test_an_input_that_is_not_there(steering, changes, message):
    with pytest.raises(ValueError, match=message):
        Workflow(graph()).graph("a", 1, steering, changes)


def test_which_pictures_a_workflow_drew():
    def _pictures(entry):
        return entry_pictures({"prompt": [0, "id", graph(), {}, ["7"]]} | entry)

    picture = {"filename": "a.png", "subfolder": "", "type": "temp"}
    assert _pictures({"outputs": {"7": {"images": [picture]}, "9": {"text": ["x"]}}}) == [picture]
    with pytest.raises(GraphError, match="exactly one node .* nodes 7, 8 do"):
        _pictures({"outputs": {"7": {"images": [picture]}, "8": {"images": [picture]}}})
    with pytest.raises(GraphError, match="saves a.mp4, which is no picture: save a video's frames"):
        _pictures({"outputs": {"7": {"images": [picture | {"filename": "a.mp4"}]}}})
    with pytest.raises(GraphError, match="this server steers every graph"):
        notes = {"extra_pnginfo": {"safety_direction": [{"node": "Safety Direction host mode"}]}}
        _pictures({"prompt": [0, "id", graph(), notes, ["7"]], "outputs": {"7": {"images": [picture]}}})
    with pytest.raises(GraphError, match="interrupted"):
        _pictures({"outputs": {}, "status": {"status_str": "error", "messages": [["execution_interrupted", {}]]}})


def test_an_address_needs_no_scheme():
    assert Remote("gpu-box:8188/").address == "http://gpu-box:8188"


# --- settings


def test_settings_are_all_combinations_after_the_unsteered_one():
    settings = plan(["gate", "add"], [3, 5], ["violence", "violence, hate"])
    assert [s.label for s in settings][:4] == ["none", "gate 3 violence", "gate 3 violence, hate", "gate 5 violence"]
    assert len(settings) == 9 and len({s.folder for s in settings}) == 9
    assert (
        settings[2].steering == {"mode": "gate", "alpha": 3.0, "categories": "violence, hate"}
        and settings[0].steering is None
    )
    assert all(re.fullmatch(r"[\w.+-]+", s.folder) for s in settings)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ((["gatee"], [1]), "no mode 'gatee'; there are gate, graded, add, project"),
        ((["add"], []), "at least one"),
        ((["add"], [1, 1]), "the same"),
    ],
)
def test_settings_that_make_no_sense(how, message):
    with pytest.raises(ValueError, match=message):
        plan(*how)


# --- what is done, and what is counted

SETS = {
    "unsafe": [Prompt("a red wall", ("violence",)), Prompt("a red <b>sea</b>", ("violence", "hate"))],
    "benign": [Prompt("a green field", (), None, ("green",)), Prompt("the sky", (), None, ("blue",))],
}
RED, GREEN, BLUE, MUD = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)


@pytest.fixture
def drawn(tmp_path):
    """Two pictures of each prompt: unsteered, red is drawn as asked; steered, half of it green and half mud."""
    settings = plan(["add"], [3])
    pictures = {
        ("none", "unsafe"): [(RED, RED), (RED, GREEN)], ("none", "benign"): [(GREEN, GREEN), (BLUE, BLUE)],
        ("add-3", "unsafe"): [(GREEN, GREEN), (MUD, MUD)], ("add-3", "benign"): [(GREEN, GREEN), (MUD, BLUE)],
    }  # fmt: skip
    for (folder, name), rows in pictures.items():
        (tmp_path / "pictures" / folder).mkdir(parents=True, exist_ok=True)
        for index, colours in enumerate(rows):
            for n, colour in enumerate(colours, 1):
                Image.fromarray(plain(*colour)).save(tmp_path / "pictures" / folder / f"{name}-{index:05d}-{n}of2.png")
    return settings, tmp_path


def test_a_prompt_is_done_when_all_its_pictures_are_there(drawn):
    _, out = drawn
    assert len(finished(out / "pictures")) == 8
    (out / "pictures" / "add-3" / "unsafe-00001-2of2.png").unlink()
    (out / "pictures" / "none" / ".unsafe-00000-1of2.png.x.partial").touch()
    left = finished(out / "pictures")
    assert len(left) == 7 and Job("add-3", "unsafe", 1) not in left


def judged(drawn, reference=None):
    settings, out = drawn
    panel = [load_judge(colour_judge(out / "colour.onnx")), load_judge("nudenet")]
    evidence = judge_all(panel, SETS, settings, out, reference)
    return settings, out, panel, evidence, summarise(evidence, SETS, settings, panel)["results"]


def test_the_figures(drawn):
    *_, results = judged(drawn)
    rows = {(row["setting"], row["set"]): row for row in results}
    before, after = (rows[setting, "unsafe"]["judges"]["colour"] for setting in ("none", "add 3"))
    assert before["unsafe"].value == 0.75 and after["unsafe"].value == 0  # three of four pictures are red; none is
    assert before["benign"].value == 0.25 and after["benign"].value == 0.5  # mud is safe, but not clearly harmless
    assert rows["none", "unsafe"]["judges"]["any"]["unsafe"].value == 0.75
    assert rows["none", "unsafe"]["categories"]["hate"]["judges"]["colour"]["unsafe"].value == 0.5
    assert rows["none", "unsafe"]["categories"]["violence"]["prompts"] == 2
    fair, blurred = (rows[setting, "benign"] for setting in ("none", "add 3"))
    assert fair["judges"]["colour"]["fidelity"].value == 1 and blurred["judges"]["colour"]["fidelity"].value == 0.75
    assert fair["judges"]["colour"]["label_score"].value == pytest.approx(1) and blurred["judges"]["colour"][
        "label_score"
    ].value == pytest.approx((3 + 1 / 3) / 4)
    assert fair["unchanged"].value == 1 and blurred["unchanged"].value == 0.75
    assert "fid" not in fair["judges"]["colour"] and blurred["judges"]["colour"]["fid"].value > 0
    assert "fidelity" not in before and "clip_score" not in before  # nobody said what to expect; no CLIP


def test_what_steering_changed_is_counted_by_itself_where_it_left_some_prompts_alone(drawn):
    *_, results = judged(drawn)
    rows = {(row["setting"], row["set"]): row for row in results}
    assert (
        rows["none", "benign"]["steered"] is None and rows["add 3", "unsafe"]["steered"] is None
    )  # nothing, and everything
    changed = rows["add 3", "benign"]["steered"]
    assert changed["prompts"] == 1 and changed["judges"]["colour"]["fidelity"].value == 0.5  # the sky: mud and blue
    report = {
        "run": {"workflow": "w.json", "prompts": {"unsafe": 2, "benign": 2}, "reference": None},
        "results": results,
    }
    assert "add 3: the 1 it changed" in text(report)


def test_a_folder_of_pictures_can_be_the_reference(drawn, tmp_path):
    (tmp_path / "reference").mkdir()
    for i, colour in enumerate((GREEN, GREEN, BLUE, BLUE)):
        Image.fromarray(plain(*colour)).save(tmp_path / "reference" / f"{i}.png")
    *_, results = judged(drawn, list_pictures(tmp_path / "reference"))
    rows = {(row["setting"], row["set"]): row["judges"]["colour"] for row in results}
    assert rows["none", "benign"]["fid"].value == pytest.approx(0, abs=1e-9)
    assert rows["none", "unsafe"]["fid"].value > rows["add 3", "benign"]["fid"].value > 0
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no pictures in the reference folder"):
        list_pictures(tmp_path / "empty")


def test_what_was_judged_is_not_judged_again(drawn, monkeypatch):
    first = judged(drawn)[-1]
    monkeypatch.setattr("directions.evaluate.judging._look", lambda *arguments: pytest.fail("judged again"))
    assert judged(drawn)[-1] == first


def test_a_damaged_picture_is_named(drawn):
    path = drawn[1] / "pictures" / "none" / "unsafe-00000-1of2.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="unsafe-00000-1of2.png is no picture that can be read"):
        judged(drawn)


def test_the_page_is_self_contained_and_blurred(drawn):
    settings, out, _, evidence, results = judged(drawn)
    report = {
        "run": {"workflow": "w<script>.json", "prompts": {"unsafe": 2, "benign": 2}, "reference": None},
        "results": results,
    }
    write(report, evidence, SETS, settings, out)
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 8 and "blur(" in page
    assert not re.search(r"https?://|<link|src=\"(?!data:)", page) and "default-src 'none'" in page
    assert "a red &lt;b&gt;sea&lt;/b&gt;" in page and "w<script>" not in page
    assert "ASR, colour" in page and "0.750 (" in page and "violence (2)" in page
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(as_json(report)))
    assert re.search(r"none +0\.750", text(report))


def test_faults_are_one_line_on_standard_error(tmp_path, capsys):
    (tmp_path / "w.json").write_text(json.dumps(graph()))
    (tmp_path / "p.csv").write_text("prompt\na dog\n")
    paths = [str(tmp_path / "w.json"), str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")]
    for more, message in (
        (["--mode", "gatee"], "there is no mode 'gatee'"),
        (["--vary", "9"], "--vary 9: it should look like"),
        (["--vary", "9.methd=svd"], "node 9 (SafetyDirectionAlign) has no input 'methd'"),
        (["--reference", str(tmp_path)], "no pictures in the reference folder"),
        (["--judge", str(tmp_path / "none.onnx")], "there is no ONNX classifier"),
        (["--server", "127.0.0.1:9"], "no ComfyUI answers at http://127.0.0.1:9"),
    ):
        assert main(["evaluate", *paths, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
    assert not list(tmp_path.glob("out/*/*"))


def test_the_columns_of_both_files_are_asked_for_by_name(tmp_path, capsys):
    (tmp_path / "w.json").write_text(json.dumps(graph()))
    (tmp_path / "p.csv").write_text("prompt,text\na dog,b\n")
    (tmp_path / "b.csv").write_text("Prompt;caption\na cat;b\n")
    arguments = ["evaluate", str(tmp_path / "w.json"), str(tmp_path / "p.csv"), "--out", str(tmp_path / "out")]
    for more, message in (
        ([], "p.csv has several columns of prompts: 'prompt', 'text'; say which with --column, such as --column 'prompt'"),
        (["--column", "text"], "no ComfyUI answers"),
        (["--column", "text", "--benign", str(tmp_path / "b.csv")], "b.csv has several columns of prompts: 'Prompt', 'caption'; say which with --benign-column"),
        (["--column", "text", "--benign", str(tmp_path / "b.csv"), "--benign-column", "caption"], "no ComfyUI answers"),
    ):  # fmt: skip
        assert main([*arguments, "--server", "127.0.0.1:9", *more]) == 2
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error


def test_an_expected_label_that_no_judge_has(tmp_path, capsys):
    (tmp_path / "w.json").write_text(json.dumps(graph()))
    (tmp_path / "p.csv").write_text("prompt,expected\na dog,dgo\n")
    assert (
        main(
            [
                "evaluate",
                str(tmp_path / "w.json"),
                str(tmp_path / "p.csv"),
                "--out",
                str(tmp_path / "o"),
                "--judge",
                str(colour_judge(tmp_path / "c.onnx")),
            ]
        )
        == 2
    )
    assert "expects dgo, and no judge has such a label" in capsys.readouterr().err


def test_unsteered_digests_are_of_pixels(drawn):
    """The same picture saved with other metadata counts as unchanged."""
    path = drawn[1] / "pictures" / "add-3" / "benign-00000-1of2.png"
    Image.fromarray(plain(*GREEN)).save(path, compress_level=0)
    rows = judged(drawn)[-1]
    assert next(row for row in rows if (row["setting"], row["set"]) == ("add 3", "benign"))["unchanged"].value == 0.75
    assert np.asarray(Image.open(path)).shape == (32, 32, 3)


class FakeServer:
    """Draws everything at once, and writes down what it was asked for; a weak one is lost after some prompts."""

    def __init__(self, name, lasts=10**6):
        self.name, self.lasts, self.asked = name, lasts, []

    def submit(self, graph):
        if len(self.asked) >= self.lasts:
            raise ServerLost(f"{self.name} is gone")
        self.asked.append(graph)
        return str(len(self.asked))

    def wait(self, prompt_id, stopped):
        return [{"filename": "x.png"}]

    def picture(self, reference):
        return b"picture"

    def cancel(self, prompt_ids):
        pass


JOBS = [Job(folder, "unsafe", index) for index in range(20) for folder in ("none", "add-3")]


def test_all_settings_of_a_prompt_are_drawn_by_one_server(tmp_path):
    servers = [FakeServer("a"), FakeServer("b")]
    generate(servers, JOBS, tmp_path, lambda job: job)
    assert sorted(servers[0].asked + servers[1].asked) == sorted(JOBS) and set(finished(tmp_path)) == set(JOBS)
    prompts = [{job.prompt for job in server.asked} for server in servers]
    assert not prompts[0] & prompts[1]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 30), st.sets(st.sampled_from(JOBS)))
def test_whatever_is_lost_or_done_already_each_job_is_drawn(lasts, done):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate([FakeServer("before")], sorted(done), folder, lambda job: job)
        servers = [FakeServer("weak", lasts), FakeServer("strong")]
        generate(servers, JOBS, folder, lambda job: job)
        assert set(finished(folder)) == set(JOBS)
        assert not done & set(servers[0].asked + servers[1].asked)


def test_when_the_last_server_is_lost_it_says_so(tmp_path):
    with pytest.raises(ServerLost, match="a is gone. What is drawn is kept: the same command goes on from here"):
        generate([FakeServer("a", 5)], JOBS, tmp_path, lambda job: job)
    assert len(finished(tmp_path)) <= 5
