"""What artists see and share: readings before and after, sweeps with a sampler behind, estimating, alignments as
files, the page's questions."""

from __future__ import annotations

import json
import re
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from harness.environment import COMFYUI_DEFAULT, default_version
from harness.server import ROOT, GraphError
from harness.templates import MODELS, make
from harness.workflow import to_api

UNSAFE = "a nude woman lying on a bed, ultra-detailed photorealism"


def nodes(info):
    return {
        name: node
        for name, node in info.items()
        if name.startswith("SafetyDirection") and name != "SafetyDirectionsLoadMiniature"
    }


def graph(prompt=UNSAFE, direction="few", **apply):
    how = {"mode": "add", "alpha": 5.0, "budget": 0.01, "categories": "", "start_percent": 0.0, "end_percent": 1.0}
    words = {"aligned": ["align", 0], "budget": 0.01, "clip": ["clip", 0], "prompt": prompt}
    return {
        "clip": {"class_type": "SafetyDirectionSmallEncoder", "inputs": {}},
        "load": {"class_type": "SafetyDirectionLoad", "inputs": {"direction": direction}},
        "align": {
            "class_type": "SafetyDirectionAlign",
            "inputs": {"direction": ["load", 0], "clip": ["clip", 0], "method": "ridge"},
        },
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": prompt}},
        "apply": {
            "class_type": "SafetyDirectionApply",
            "inputs": how | apply | {"conditioning": ["text", 0], "aligned": ["align", 0]},
        },
        "plain": {"class_type": "SafetyDirectionInspect", "inputs": words | {"conditioning": ["text", 0]}},
        "steered": {"class_type": "SafetyDirectionInspect", "inputs": words | {"conditioning": ["apply", 0]}},
    }


def shown(result, node):
    return result.outputs[node]["safety_direction"][0]


def ask(server, path):
    with urllib.request.urlopen(server.url + path) as response:
        return json.load(response)


def test_inspect_shows_a_steered_prompt_as_it_was_and_as_it_is(tiny):
    result = tiny.queue(graph())
    plain, steered = shown(result, "plain"), shown(result, "steered")
    assert plain["before"] is None and steered["before"] == plain["after"]
    assert steered["after"]["global"]["score"] < min(
        steered["before"]["global"]["score"] - 2, 1
    )  # to where harmless prompts are
    assert set(steered["after"]) == {"global", "disturbing", "hate", "humiliation", "illegal", "sexual", "violence"}
    low, high = plain["after"]["global"]["band"]
    assert low < 0 < high < plain["after"]["global"]["threshold"]


def test_inspect_shows_a_steered_clip_as_it_was_too(tiny):
    steered = graph()
    apply = steered.pop("apply")["inputs"]
    settings = {name: apply[name] for name in ("mode", "alpha", "budget", "categories")}
    steered["safe"] = {
        "class_type": "SafetyDirectionCLIP",
        "inputs": {"clip": ["clip", 0], "aligned": ["align", 0], **settings},
    }
    steered["apply"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["safe", 0], "text": UNSAFE}}
    result = tiny.queue(steered)
    assert shown(result, "steered")["before"] == shown(result, "plain")["after"]


def test_a_word_of_several_tokens_is_one_word(tiny):
    reading = shown(tiny.queue(graph()), "plain")
    assert "photorealism" in reading["words"] and len(reading["words"]) == len(reading["after"]["global"]["words"])
    assert " ".join(reading["words"]).replace(" - ", "-") == UNSAFE


def test_a_category_colours_the_words_by_its_own_scores(tiny):
    both = graph()
    for name, category in (("plain", ""), ("steered", "sexual")):
        both[name]["inputs"] |= {"conditioning": ["text", 0], "category": category, "theme": "dark"}
        both[f"picture {name}"] = {"class_type": "PreviewImage", "inputs": {"images": [name, 0]}}
    result = tiny.queue(both)
    pictures = [
        Image.open(BytesIO(tiny.image(result.outputs[f"picture {name}"]["images"][0]))).convert("RGB")
        for name in ("plain", "steered")
    ]
    assert pictures[0].size == pictures[1].size and pictures[0].tobytes() != pictures[1].tobytes()
    both["plain"]["inputs"]["category"] = "weather"
    with pytest.raises(GraphError, match="no category 'weather': this direction has disturbing"):
        tiny.queue(both)


def test_apply_says_whether_it_steered_or_found_it_steered(tiny):
    twice = graph(alpha=4.0)  # a strength of its own: a node whose output is cached says nothing
    twice["again"] = {
        "class_type": "SafetyDirectionApply",
        "inputs": twice["apply"]["inputs"] | {"conditioning": ["apply", 0]},
    }
    twice["steered"]["inputs"]["conditioning"] = ["again", 0]
    result = tiny.queue(twice)
    assert (shown(result, "apply")["state"], shown(result, "again")["state"]) == ("aligned", "double")


def sweep(**changes):
    found = graph()
    del found["apply"], found["steered"], found["plain"]
    inputs = {
        "conditioning": ["text", 0],
        "aligned": ["align", 0],
        "alphas": "0, 3",
        "modes": "gate, add",
        "budget": 0.01,
        "categories": "",
    }
    found["sweep"] = {
        "class_type": "SafetyDirectionSweep",
        "inputs": inputs | {"clip": ["clip", 0], "prompt": UNSAFE} | changes,
    }
    return found


def test_a_sampler_behind_the_sweep_runs_once_for_each_setting(tiny):
    sampled = sweep() | {
        "model": {"class_type": "TinyImageModel", "inputs": {}},
        "latent": {"class_type": "EmptyChromaRadianceLatentImage", "inputs": {"width": 32, "height": 32, "batch_size": 1}},
        "sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0], "seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "positive": ["sweep", 0],
                "negative": ["text", 0], "latent_image": ["latent", 0], "denoise": 1.0,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["sample", 0], "vae": ["model", 1]}},
        "grid": {"class_type": "SafetyDirectionGrid", "inputs": {"images": ["decode", 0], "label": ["sweep", 1], "columns": 0, "cell": 64}},
    }  # fmt: skip
    seen = []
    result = tiny.queue(sampled, on_progress=lambda p: seen.append((p.node_id, p.value, p.maximum)))
    rows = [line.split("\t") for line in "".join(result.outputs["sweep"]["text"]).splitlines()]
    scores = {name: float(score) for name, score, _ in rows}
    assert list(scores) == ["gate 0", "gate 3", "add 0", "add 3"]
    assert scores["gate 0"] == scores["add 0"] > scores["add 3"]
    assert ("sweep", 4, 4) in seen
    grid = Image.open(BytesIO(tiny.image(result.outputs["grid"]["images"][0])))
    assert grid.width == 2 * 64 + 3 * 10 and grid.height == 2 * (64 + 30) + 3 * 10  # two modes in rows of two


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": "1, much"}, "'much' is not a number"),
        ({"alphas": "0, 99"}, "99 is not between -20 and 20"),
        ({"alphas": ""}, "0 strengths"),
        ({"modes": "gate, magic"}, "'magic' is not a mode; write some of gate"),
        ({"categories": "weather"}, "no category 'weather'"),
    ],
)
def test_a_sweep_says_which_setting_is_wrong(tiny, change, message):
    with pytest.raises(GraphError, match=message) as caught:
        tiny.queue(sweep(**change))
    assert caught.value.node_id == "sweep"


def aligned_as(name, overwrite=False):
    found = graph()
    for node in ("apply", "plain", "steered", "text"):
        del found[node]
    return found | {
        "save": {
            "class_type": "SafetyDirectionSaveAligned",
            "inputs": {"aligned": ["align", 0], "name": name, "overwrite": overwrite},
        }
    }


def test_an_alignment_is_saved_once_and_loaded_instead_of_made(tiny):
    tiny.queue(aligned_as("few-minilm"))
    file = tiny.base / "models" / "safety_directions" / "aligned" / "few-minilm.safetensors"
    assert file.is_file()
    loaded = graph()
    del loaded["load"]
    loaded["align"] = {
        "class_type": "SafetyDirectionLoadAligned",
        "inputs": {"name": "few-minilm", "clip": ["clip", 0]},
    }
    assert shown(tiny.queue(loaded), "steered")["before"] == shown(tiny.queue(graph()), "steered")["before"]
    facts = ask(tiny, "/safety_directions/aligned/few-minilm")
    assert facts["slots"] == {"cond": 384} and "violence" in facts["categories"]


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "CON.txt", "x" * 65])
def test_names_do_not_leave_their_folder(tiny, name):
    with pytest.raises(GraphError, match="small letters"):
        tiny.queue(aligned_as(name))
    loaded = graph()
    loaded["align"] = {"class_type": "SafetyDirectionLoadAligned", "inputs": {"name": name}}
    with pytest.raises(GraphError, match="no alignment|not in list"):
        tiny.queue(loaded)


def language_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel(
            {"[UNK]": 0, "</s>": 1, "a": 2, "nude": 3, "woman": 4, "with": 5, "knife": 6, "blood": 7}, unk_token="[UNK]"
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="[UNK]").save_pretrained(folder)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes)).save_pretrained(folder)


def estimated(name="mine", layer="1", pairs="few pairs"):
    return {
        "learn": {
            "class_type": "SafetyDirectionEstimate",
            "inputs": {"model": "tiny", "name": name, "pairs": pairs, "layer": layer, "licence": "CC0-1.0"},
        },
    }


def test_a_direction_of_ones_own_is_learned_saved_and_never_written_over(tiny):
    models = tiny.base / "models"
    language_model(models / "LLM" / "tiny")
    pairs = models / "safety_directions" / "few pairs"
    pairs.mkdir()
    rows = [f"train\tt{i}\tplain\ta woman with a red hat {i}\ta nude woman with blood {i}" for i in range(12)]
    (pairs / "violence.tsv").write_text("\n".join(["split\ttheme\tstyle\tsafe\tunsafe", *rows]) + "\n")
    seen = []
    result = tiny.queue(estimated(), on_progress=lambda p: seen.append(p.maximum))
    assert "1 categories, layers [1]" in "".join(result.outputs["learn"]["text"]) and max(seen) > 10
    file = models / "safety_directions" / "mine.safetensors"
    written = file.stat().st_mtime_ns
    facts = ask(tiny, "/safety_directions/direction/mine")
    assert (facts["source"], facts["categories"], facts["licence"]) == ("tiny", ["violence"], "CC0-1.0")
    tiny.free()
    assert "as it was saved before" in "".join(tiny.queue(estimated(layer="auto")).outputs["learn"]["text"])
    with pytest.raises(GraphError, match="another direction named 'mine'"):
        tiny.queue(estimated(layer="2"))
    with pytest.raises(GraphError, match="another direction named 'few'"):
        tiny.queue(estimated("few"))
    assert file.stat().st_mtime_ns == written
    with pytest.raises(GraphError, match="small letters"):
        tiny.queue(estimated("../mine"))


def test_the_page_is_told_what_a_file_is_and_no_other_file(tiny):
    facts = ask(tiny, "/safety_directions/direction/few")
    assert (
        facts["source"] == "smollm2-135m-instruct"
        and len(facts["categories"]) == 6
        and facts["anchors"] == 400
        and facts["licence"] == "Apache-2.0"
    )
    (tiny.base / "models" / "safety_directions" / "broken.safetensors").write_bytes(b"not a file")
    assert "not safetensors" in ask(tiny, "/safety_directions/direction/broken")["error"]
    for name in ("%2e%2e%2f%2e%2e%2fcomfyui", "..%2Faligned%2Ffew-minilm", "nothing"):
        assert ask(tiny, f"/safety_directions/direction/{name}").keys() == {"name", "error"}


def test_node_ids_inputs_and_outputs_stay_as_old_workflows_know_them(tiny):
    frozen = json.loads((Path(__file__).parent / "frozen.json").read_text(encoding="utf-8"))
    found = nodes(tiny.object_info())
    for name, old in frozen.items():
        inputs = [key for group in ("required", "optional") for key in found[name]["input_order"].get(group, [])]
        assert [key for key in inputs if key in old["inputs"]] == old["inputs"], (
            name
        )  # widgets are saved by their order
        required = set(found[name]["input_order"].get("required", []))
        assert required <= set(old["inputs"]), f"{name}: a new input has to be optional"
        assert found[name]["output"][: len(old["outputs"])] == old["outputs"], name
    assert set(found) == set(frozen), "a new node belongs into frozen.json"


@pytest.mark.skipif(
    default_version() != COMFYUI_DEFAULT, reason=f"templates are made with the nodes of ComfyUI {COMFYUI_DEFAULT}"
)
def test_the_shipped_templates_are_those_that_harness_templates_makes(tiny):
    for path, text in make(tiny.object_info()).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, "run: python -m harness.templates"


def template(name):
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


TEMPLATES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "try-with-small-encoder"])
def test_a_template_is_valid_and_stops_only_for_want_of_weights(tiny, name):
    for file, (_, folder) in MODELS.items():
        (tiny.base / "models" / folder).mkdir(exist_ok=True)
        (tiny.base / "models" / folder / file).touch()
    llm = tiny.base / "models" / "LLM"
    llm.mkdir(exist_ok=True)
    (llm / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    workflow = template(name)
    notes = [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert len(notes) == 1 and notes[0]["widgets_values"][0].startswith("# ")
    with pytest.raises(GraphError) as caught:
        tiny.queue(to_api(workflow, tiny.object_info()))
    # ComfyUI's validation would name inputs; what is left is an empty file that a loader can't read.
    assert caught.value.trace and (
        "Load" in caught.value.node_type or caught.value.node_type == "SafetyDirectionEstimate"
    ), str(caught.value)


def test_every_template_has_a_picture_and_is_listed(tiny):
    assert set(ask(tiny, "/workflow_templates")["safety-directions"]) == set(TEMPLATES)
    for name in TEMPLATES:
        with urllib.request.urlopen(f"{tiny.url}/api/workflow_templates/safety-directions/{name}.jpg") as response:
            picture = Image.open(BytesIO(response.read()))
        assert picture.width >= 400 and (ROOT / "workflows" / f"{name}.jpg").stat().st_size < 80_000


def translated(english, foreign):
    """In another language, with the same numbers, paths and option names, which are typed as they are."""
    fixed = r"(?a)\d+(?:\.\d+)?|models/\w+|<\w+>|pip install \w+|\b(?:gate|add|project|auto|steer|refuse|both)\b(?=:)"
    return foreign != english and sorted(re.findall(fixed, english)) == sorted(
        re.findall(fixed, foreign.replace(" :", ":").replace("：", ":"))
    )


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "fr", "de", "es"])
def test_every_name_and_tooltip_is_translated(tiny, language):
    known = ask(tiny, "/i18n")[language]["nodeDefs"]
    found = nodes(tiny.object_info())
    assert set(known) == set(found)
    for name, node in found.items():
        own = known[name]
        assert own["display_name"] and own["description"] and own["description"] != node["description"], name
        inputs = {
            key: spec[1] if len(spec) > 1 else {}
            for group in ("required", "optional")
            for key, spec in node["input"].get(group, {}).items()
        }
        assert set(own["inputs"]) == set(inputs), name
        for key, options in inputs.items():
            assert own["inputs"][key]["name"], f"{name}.{key}"
            assert translated(options["tooltip"], own["inputs"][key]["tooltip"]), f"{name}.{key}"
        assert len(own["outputs"]) == len(node["output"]), name
        for slot, tooltip in enumerate(node["output_tooltips"]):
            assert own["outputs"][str(slot)]["name"], f"{name}:{slot}"
            assert not tooltip or translated(tooltip, own["outputs"][str(slot)]["tooltip"]), f"{name}:{slot}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_names_each_nodes_pack_for_a_manager_that_lacks_it(name):
    (published,) = re.findall(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    packs = {
        node["properties"].get("cnr_id")
        for node in template(name)["nodes"]
        if node["type"].startswith("SafetyDirection")
    }
    assert packs == {published}


def test_every_input_has_a_tooltip_and_every_node_that_steers_can_be_found(tiny):
    for name, node in nodes(tiny.object_info()).items():
        for group in ("required", "optional"):
            for key, spec in node["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{key}"
        if name in ("SafetyDirectionApply", "SafetyDirectionCLIP", "SafetyDirectionGuard", "SafetyDirectionLoad"):
            assert {"nsfw", "safe", "censor", "concept slider"} <= set(node["search_aliases"]), name


def test_the_blueprint_is_offered(tiny):
    listed = ask(tiny, "/global_subgraphs")
    key = next(key for key, entry in listed.items() if entry["name"] == "Safe prompt")
    assert listed[key]["info"]["node_pack"] == "custom_nodes.safety-directions"
    blueprint = json.loads(ask(tiny, f"/global_subgraphs/{key}")["data"])
    (inner,) = blueprint["definitions"]["subgraphs"]
    known = tiny.object_info()
    assert all(node["type"] in known for node in inner["nodes"])
    assert [(i["name"], i["type"]) for i in inner["inputs"]][:2] == [("clip", "CLIP"), ("text", "STRING")]
    assert [o["type"] for o in inner["outputs"]] == ["CONDITIONING"]
