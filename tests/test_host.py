"""Policies, without a ComfyUI; whole graphs run in tests/comfyui/test_host.py."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from directions.graph import HEALTH
from tests.published import files_of_the_repository

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def host():
    # nodes/__init__.py wants ComfyUI; this module doesn't.
    for name, folder in (("host_pack", ROOT), ("host_pack.nodes", ROOT / "nodes")):
        sys.modules[name] = package = types.ModuleType(name)
        package.__path__ = [str(folder)]
    yield importlib.import_module("host_pack.nodes.host.policy")
    for name in [name for name in sys.modules if name.startswith("host_pack")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "policy.json: Expecting"),
        ([1], "not a JSON object"),
        ({}, "names no direction"),
        ({"direction": "d", "strength": 5}, "unknown: strength; known: direction, "),
        ({"direction": "d", "alpha": "5"}, "alpha is '5', not a number"),
        ({"direction": "d", "mode": "magic"}, "mode is one of gate, graded, add, project"),
        ({"direction": "d", "on_flag": "laugh"}, "on_flag is steer, refuse or report"),
        ({"direction": "d", "log_prompts": "all"}, "log_prompts is one of leave out, hash, keep"),
        ({"direction": "d", "negatives": "hide"}, "negatives is steer or keep"),
        ({"direction": "d", "also": "cigarettes"}, "also is 'cigarettes', not a list of words"),
        ({"direction": "d", "also": ["cigarettes", " "]}, "also: one of the words is empty"),
        ({"direction": "d", "also": ["a red car", "A red car"]}, "also: 'A red car' would be the category"),
        ({"direction": "d", "budget": 2}, "budget a share from 0 to 1"),
        ({"direction": "d", "client_header": "X-Class", "budgets": {"staff": 2}}, "budget a share from 0 to 1"),
        ({"direction": "d", "client_header": "X-Class", "budgets": {"staff": "2"}}, "not numbers by class of client"),
        ({"direction": "d", "budgets": {"staff": 0.1}}, "client_header and budgets need each other"),
        ({"direction": "d", "alpha": float("nan")}, "alpha is -20 to 20"),
    ],
)
def test_a_policy_that_cannot_be_followed_says_why(host, tmp_path, content, message):
    path = tmp_path / "policy.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(host.PolicyError, match=message):
        host.read_policy(path)


def test_a_policy_names_what_the_nodes_take(host, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(
        json.dumps({"direction": "d", "mode": "add", "alpha": 3, "categories": "violence", "on_flag": "refuse"})
    )
    assert host.read_policy(path).settings == {"mode": "add", "alpha": 3, "budget": 0.01, "categories": "violence"}


HOSTING = ROOT / "hosting"


def test_the_policy_to_begin_with_can_be_followed(host):
    policy = host.read_policy(HOSTING / "policy.json")
    assert policy.on_flag == "refuse" and policy.log == "/var/log/comfyui/safety.log"


def test_the_image_holds_what_the_archive_holds_and_asks_the_health_page():
    lines = (HOSTING / "Dockerfile").read_text(encoding="utf-8")
    copied = {name for line in re.findall(r"^COPY (.*) \S+$", lines, re.M) for name in line.split()}
    assert all((ROOT / name).exists() for name in copied)
    left_out = {name.strip("/") for name in (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()}
    folders = {name.partition("/")[0] for name in files_of_the_repository() if "/" in name}
    assert {name for name in folders - left_out if name[0] != "."} <= copied
    assert f"http://127.0.0.1:8188{HEALTH}'" in lines


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here")
def test_systemd_takes_the_unit(tmp_path):
    unit = (HOSTING / "safety-directions.service").read_text(encoding="utf-8")
    path = tmp_path / "safety-directions.service"
    path.write_text(unit.replace("/opt/ComfyUI/venv/bin/python", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
