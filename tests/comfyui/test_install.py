"""Installed as users install it: by ComfyUI Manager from a git URL, from the registry's archive, and gone again."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import urllib.parse
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.environment import find
from harness.server import PACK, ROOT, Server
from harness.workflow import to_api
from tests.published import run

NODES = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
AWKWARD = "Sicherheit 安全 (copy)"
POLICY = {"direction": "smollm2-135m-instruct", "on_flag": "steer", "log": "safety.log"}


def demo(server: Server):
    workflow = json.loads((ROOT / "example_workflows" / "safety-start-here-no-nsfw.json").read_text(encoding="utf-8"))
    return server.queue(to_api(workflow, server.object_info()))


def said(result) -> list[str]:
    return ["".join(shown["text"]) for _, shown in sorted(result.outputs.items()) if "text" in shown]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture(scope="module")
def from_git(repository, tmp_path_factory):
    """Cloned by ComfyUI Manager, run, deleted; and what ComfyUI says after that."""
    base = tmp_path_factory.mktemp("comfyui") / "ComfyUI"
    shutil.copytree(find().comfyui, base)  # the Manager installs into the tree that it is told of
    environment = replace(find(), comfyui=base)
    address = f"file://localhost{urllib.parse.quote(repository.as_posix())}"
    variables = {"COMFYUI_PATH": str(base), "PYTHONUTF8": "1"}
    transcript = run(
        sys.executable,
        "-m",
        "cm_cli",
        "install",
        address,
        "--mode",
        "local",
        "--exit-on-fail",
        cwd=base,
        variables=variables,
    )
    pack = base / "custom_nodes" / PACK
    with Server(environment=environment, base=base, packs={PACK: pack}) as server:
        during, result = server.object_info(), demo(server)
    shutil.rmtree(pack)
    with Server(environment=environment, base=base, packs={}) as server:
        after, log = server.object_info(), server.log_text()
    return SimpleNamespace(
        environment=environment, base=base, transcript=transcript, during=during, result=result, after=after, log=log
    )


@pytest.fixture(scope="module")
def awkward(archive, from_git, tmp_path_factory):
    """The archive unpacked twice beside another pack, once under an awkward name and read-only; in host mode, without
    optional extras."""
    base, environment = from_git.base, from_git.environment
    packs = {
        PACK: base / "custom_nodes" / PACK,
        AWKWARD: base / "custom_nodes" / AWKWARD,
        "neighbour": ROOT / "tests" / "comfyui" / "neighbour",
    }
    for name in (PACK, AWKWARD):
        with zipfile.ZipFile(archive) as content:
            content.extractall(packs[name])
    for path in (packs[AWKWARD], *packs[AWKWARD].rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)
    policy = base / "policy.json"
    policy.write_text(json.dumps(POLICY | {"log": str(base / "safety.log")}), encoding="utf-8")
    before = tree(packs[AWKWARD])
    path = os.pathsep.join(map(str, (ROOT / "tests" / "without_extras", *find().pythonpath)))
    with Server(
        environment=environment,
        base=base,
        packs=packs,
        variables={"SAFETY_DIRECTION_POLICY": str(policy), "PYTHONPATH": path},
    ) as server:
        modules = {
            name: json.loads(
                "".join(
                    server.queue(
                        {"1": {"class_type": "ModulesOf", "inputs": {"folder": os.path.join("custom_nodes", name, "")}}}
                    ).outputs["1"]["text"]
                )
            )
            for name in (PACK, AWKWARD)
        }
        # Under AWKWARD nothing is served: aiohttp compares the decoded path with the quoted folder name, whatever pack it is.
        help_text = server._request(f"/extensions/{PACK}/docs/SafetyDirectionApply.md").decode()
        templates = json.loads(server._request("/workflow_templates"))
        yield SimpleNamespace(
            info=server.object_info(), result=demo(server), modules=modules, help=help_text, templates=templates,
            before=before, after=tree(packs[AWKWARD]), log=(base / "safety.log").read_text(encoding="utf-8"),
        )  # fmt: skip
    for path in (packs[AWKWARD], *packs[AWKWARD].rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)


def test_the_manager_clones_it_and_installs_nothing_else(from_git):
    assert "[INSTALLED]" in from_git.transcript
    assert "pip install" not in from_git.transcript.lower() and "## Install" not in from_git.transcript


def test_every_node_is_there_and_the_demo_workflow_runs(from_git):
    assert NODES and NODES <= set(from_git.during)
    assert any("flagged: score" in text for text in said(from_git.result))


def test_deleting_it_leaves_comfyui_as_it_was(from_git):
    ours = {name for name, node in from_git.during.items() if PACK in node.get("python_module", "")}
    assert ours == NODES
    assert from_git.after == {name: node for name, node in from_git.during.items() if name not in ours}
    here = map(str, (from_git.base, find().comfyui, *find().pythonpath, sys.prefix))
    log = functools.reduce(lambda text, path: text.replace(path, ""), here, from_git.log)
    assert "safety" not in log.lower()
    left = {
        path.parent.relative_to(from_git.base).as_posix()
        for path in from_git.base.rglob("*safety*")
        if path.parent != from_git.base
    }
    assert left <= {"user"}, "alignments stay in user/safety_directions, as the README says; nothing else does"


def test_the_archive_runs_beside_a_copy_of_itself_and_a_pack_with_the_same_module_names(awkward, from_git):
    assert NODES <= set(awkward.info) and awkward.info["KSampler"] == from_git.during["KSampler"]
    assert any("flagged: score" in text for text in said(awkward.result))


def test_in_host_mode_one_of_two_copies_takes_the_graphs(awkward):
    """Three graphs are queued, each by a client of its own."""
    clients = re.findall(r'"event": "queued", "client": "(\S+?)"', awkward.log)
    assert len(clients) == len(set(clients)) == 3


def test_no_module_of_the_pack_takes_a_name_on_the_import_path(awkward):
    for names in awkward.modules.values():
        assert len(names) > 20 and not {name.partition(".")[0] for name in names} & {
            "directions",
            "nodes",
            "web",
            "align",
            "files",
        }


def test_a_read_only_folder_with_spaces_and_other_letters_is_never_written(awkward):
    new = {name for name in awkward.after if name not in awkward.before}
    assert all("__pycache__" in name for name in new)
    assert {name: content for name, content in awkward.after.items() if name not in new} == awkward.before


def test_help_is_served_and_templates_also_from_an_awkward_folder_name(awkward):
    assert awkward.help == (ROOT / "web" / "docs" / "SafetyDirectionApply.md").read_text(encoding="utf-8")
    assert sorted(awkward.templates[AWKWARD]) == [path.stem for path in sorted((ROOT / "example_workflows").glob("*.json"))]
