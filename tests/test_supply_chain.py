"""Nothing in the pack calls home or hides something: no connection at import or run, and two scanners with a reason
for all they find."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = ("directions", "nodes", "web", "__init__.py")

OFFLINE = """
import sys
def forbid(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
    "urllib.Request", "http.client.connect"):
        print("reached for the network:", event, arguments, file=sys.stderr)
        raise PermissionError(event)
sys.addaudithook(forbid)
import importlib.util, os
from pathlib import Path
from harness.environment import find
root = Path.cwd()
sys.argv = ["test", "--cpu"]
sys.path.insert(0, os.fspath(find("test").comfyui))
import comfy.options
comfy.options.enable_args_parsing()
spec = importlib.util.spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[os.fspath(root)])
module = importlib.util.module_from_spec(spec)
sys.modules["pack"] = module
spec.loader.exec_module(module)
import torch
import folder_paths
folder_paths.set_user_directory(sys.stdin.readline().strip())
from pack.nodes import encoders
from pack.nodes.drawing.heatmap import draw
from pack.directions.direction import available, load
import pack.directions.estimate, pack.directions.evaluate, pack.directions.__main__
for name in available():
    whole = load(name)
few = whole.picked(range(120))
clip = encoders.load_minilm()
aligned = encoders.align_encoder(clip, few, "svd")
settings = pack.directions.SteeringSettings("gate", 3.0)
safe = encoders.steer_clip(clip, aligned, settings)
conditioning = safe.encode_from_tokens_scheduled(safe.tokenize("a red bicycle"))
conditioning = encoders.steer_conditioning(conditioning, aligned, settings)
draw(*encoders.inspect_conditioning(conditioning, aligned, 0.01))
print("all ran")
"""


def test_no_connection_is_made_at_import_or_run(tmp_path):
    # evaluate alone talks to somebody: to the ComfyUI servers that its user names.
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], input=f"{tmp_path}\n", capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and done.stdout.endswith("all ran\n"), done.stderr[-3000:]
    assert "reached for the network" not in done.stderr


#: What bandit says -> why that is no fault here.
BANDIT: dict[str, tuple[str, Callable[[str], bool]]] = {
    "B101": (
        "an assert for the type checker; no input can make it fail",
        lambda line: "assert" in line and "not None" in line,
    ),
    "B105": (
        "a table of shapes or of a model's settings, no password",
        lambda line: "token" in line and "password" not in line,
    ),
    "B615": ("from_pretrained with local_files_only: nothing is downloaded", lambda line: "from_pretrained(" in line),
}
#: The same for nodesafe, which looks for patterns in the text.
NODESAFE: dict[str, tuple[str, Callable[[str], bool]]] = {
    "code_execution": (
        "re.compile and a model's eval(), not Python's",
        lambda line: "re.compile(" in line or ".eval()" in line,
    ),
    "network_call": (
        "evaluate talks to the ComfyUI servers that its user names",
        lambda line: "urllib.request" in line,
    ),
    "dynamic_attribute_access": ("getattr over the names in a tuple of the source", lambda line: "getattr(" in line),
    "code_obfuscation_suspicious_ident": ("a short private name", lambda line: "def _" in line),
    "obfuscation_chains": (
        "token ids decoded and letters told apart, to cut a prompt into words",
        lambda line: "Word(" in line or "ord(letter)" in line,
    ),
    "code_obfuscation_high_entropy": (
        "a docstring or a message: words with spaces between them",
        lambda line: " " in line.strip(),
    ),
}


def unexplained(found: list[tuple[str, Path, int]], reasons: dict[str, tuple[str, Callable[[str], bool]]]) -> list[str]:
    left = []
    for kind, path, number in found:
        line = path.read_text(encoding="utf-8").splitlines()[number - 1] if number else ""
        if kind not in reasons or not reasons[kind][1](line):
            left.append(f"{path}:{number} {kind}: {line.strip()}")
    return left


def test_bandit_finds_nothing_without_a_reason():
    targets = [str(ROOT / name) for name in PACK if name != "web"]
    done = subprocess.run(
        [sys.executable, "-m", "bandit", "-q", "-r", *targets, "-f", "json"], capture_output=True, text=True
    )
    results = json.loads(done.stdout)["results"]
    assert unexplained([(r["test_id"], Path(r["filename"]), r["line_number"]) for r in results], BANDIT) == []


def test_nodesafe_finds_nothing_without_a_reason(tmp_path):
    for name in PACK:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    program = [sys.executable, "-c", "from nodesafe.cli import main; main()"]
    done = subprocess.run(
        [*program, "scan", str(tmp_path), "--format", "json", "--no-llm"], capture_output=True, text=True
    )
    findings = json.loads(done.stdout)["findings"]
    assert findings, "the scanner looked at nothing"
    assert unexplained([(f["category"], tmp_path / f["file"], f["line"] or 0) for f in findings], NODESAFE) == []
