"""Every family's real text encoder classes, at every entry point, in three precisions; `families.py` does the work.

Each run leaves its results in demo-output, from which `python -m tests.comfyui.table` makes the table in docs/encoders.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from harness.environment import default_version
from harness.server import ROOT
from tests.comfyui.families import FAMILIES

# What the named version lacks; anything else that isn't run is a failure.
MISSING = {"0.18.2": {"CogVideoX"}, "0.16.3": {"CogVideoX"}}


@pytest.fixture(scope="module")
def report():
    return run_families(f"families-{default_version()}.json")


def run_families(name: str, *options: str) -> dict:
    """The results, in a file of this name in demo-output, with ComfyUI's own options."""
    out = ROOT / "demo-output" / name
    out.parent.mkdir(exist_ok=True)
    # A process of its own: ComfyUI reads sys.argv when it is imported.
    done = subprocess.run(
        [sys.executable, "-m", "tests.comfyui.families", str(out), *options],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_planted_direction_is_read_back_at_every_entry_point_and_nothing_else_moves(report, family):
    assert report["device"] == "cpu"
    check_family(report, family)


def check_family(report: dict, family: str) -> None:
    results = dict(report["families"][family])
    reason = results.pop("not run", None)
    assert (reason is not None) == (family in MISSING.get(report["comfyui"], ())), reason
    assert reason or len(results) >= (14 if FAMILIES[family].content else 1)
    assert {key: value for key, value in results.items() if value != "pass"} == {}
