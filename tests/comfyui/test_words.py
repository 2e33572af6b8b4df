"""What people read and what old workflows know: names, tooltips, translations, search words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.server import ROOT
from tests.comfyui.graphs import ask, nodes

LANGUAGES = ["zh", "zh-TW", "ja", "ko", "fr", "es", "pt-BR", "ru", "tr", "ar"]


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


def translated(english, foreign):
    """In another language, with the same numbers, paths and option names, which are typed as they are."""
    fixed = r"(?a)\d+(?:\.\d+)?|models/\w+|<\w+>|pip install \w+|\b(?:gate|graded|add|project|auto|steer|refuse|both)\b(?=:)"
    return foreign != english and sorted(re.findall(fixed, english)) == sorted(
        re.findall(fixed, foreign.replace(" :", ":").replace("：", ":"))
    )


@pytest.mark.parametrize("language", LANGUAGES)
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


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_that_the_panels_say_is_translated(tiny, language):
    known = ask(tiny, "/i18n")[language]["safetyDirections"]
    scripts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web" / "js").glob("*.js"))
    said = set(re.findall(r'\bsay\("([^"]+)"', scripts))
    assert len(said) > 12 and said <= set(known)
    for english, foreign in known.items():
        assert f'"{english}"' in scripts or f"{english}:" in scripts, f"nothing says {english!r}"
        assert foreign and sorted(re.findall(r"{\w+}", foreign)) == sorted(re.findall(r"{\w+}", english)), english


def test_every_input_has_a_tooltip_and_every_node_that_steers_can_be_found(tiny):
    for name, node in nodes(tiny.object_info()).items():
        for group in ("required", "optional"):
            for key, spec in node["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{name}.{key}"
        if name in ("SafetyDirection", "SafetyDirectionApply", "SafetyDirectionCLIP", "SafetyDirectionGuard", "SafetyDirectionLoad"):
            assert {"nsfw", "safe", "censor", "concept slider"} <= set(node["search_aliases"]), name


@pytest.mark.parametrize("node", ["SafetyDirection", "SafetyDirectionInspect", "SafetyDirectionApply"])
def test_the_help_of_the_nodes_people_meet_first_speaks_of_the_same_inputs_in_every_language(node):
    help_of = ROOT / "web" / "docs"
    inputs = r"(?a)\*\*(\w+)\*\*|`(\w+)`"
    english = re.findall(inputs, (help_of / f"{node}.md").read_text(encoding="utf-8"))
    for language in ("zh", "ja", "ko", "fr", "es", "pt-BR", "ru"):
        foreign = (help_of / node / f"{language}.md").read_text(encoding="utf-8")
        assert set(re.findall(inputs, foreign)) == set(english), f"{node}, {language}"
