"""The checks of tests/inside_comfyui/checks.py, each under its own name; they run in one process with ComfyUI in it."""

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent / "inside_comfyui" / "checks.py"
NAMES = [
    line.split("(")[0].removeprefix("def ")
    for line in CHECKS.read_text(encoding="utf-8").splitlines()
    if line.startswith("def test_")
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, pytestconfig):
    """What failed, by check: {name: [message, ...]}, empty where all passed."""
    report = tmp_path_factory.mktemp("checks") / "report.xml"
    command = [sys.executable, "-m", "pytest", str(CHECKS), "-q", f"--junitxml={report}", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pytestconfig.rootpath)
    assert report.is_file(), done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = [str(fault.text)[-3000:] for kind in ("failure", "error", "skipped") for fault in case.iter(kind)]
        found.setdefault(case.get("name", "").split("[")[0], []).extend(failed)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_in_comfyui(outcomes, name):
    assert name in outcomes and outcomes[name] == [], "\n".join(outcomes.get(name, ["it did not run"]))
