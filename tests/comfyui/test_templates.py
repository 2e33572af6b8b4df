"""What the template browser offers is valid, up to date, has a picture and names its packs."""

from __future__ import annotations

import json
import re
import urllib.request
from io import BytesIO

import pytest
from PIL import Image

from harness.environment import COMFYUI_DEFAULT, default_version
from harness.server import ROOT, GraphError
from harness.templates import FOLDER, TEMPLATES, make, pretend_weights
from harness.workflow import to_api
from tests.comfyui.graphs import ask


@pytest.mark.skipif(
    default_version() != COMFYUI_DEFAULT, reason=f"templates are made with the nodes of ComfyUI {COMFYUI_DEFAULT}"
)
def test_the_shipped_templates_are_those_that_harness_templates_makes(tiny):
    for path, text in make(tiny.object_info()).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, "run: python -m harness.templates"


def template(name):
    return json.loads((ROOT / FOLDER / f"{name}.json").read_text(encoding="utf-8"))


NEED_NO_WEIGHTS = ("safety-start-here-no-nsfw", "safety-every-step-small-encoder")


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in NEED_NO_WEIGHTS])
def test_a_template_is_valid_and_stops_only_for_want_of_weights(tiny, name):
    pretend_weights(tiny.base / "models")
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
        assert picture.width >= 400 and (ROOT / FOLDER / f"{name}.jpg").stat().st_size < 80_000


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_names_each_nodes_pack_for_a_manager_that_lacks_it(name):
    (published,) = re.findall(r'^name = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    packs = {
        node["properties"].get("cnr_id")
        for node in template(name)["nodes"]
        if node["type"].startswith("SafetyDirection")
    }
    assert packs == {published}


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
