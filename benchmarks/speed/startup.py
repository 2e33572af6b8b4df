"""What the pack adds to ComfyUI's start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from statistics import median
from typing import Iterator

from harness.server import ROOT

from .clock import Row

ROUNDS = 3
HEAVY = (
    "transformers",
    "sklearn",
    "scipy",
    "pandas",
    "onnxruntime",
    "matplotlib",
    "ray",
    "accelerate",
    "nudenet",
    "torchmetrics",
)

# What ComfyUI has imported by the time that it comes to custom nodes, then the pack, as it imports it.
PROGRAM = """
import sys, time, json, asyncio, importlib.util, os
sys.path.insert(0, os.getcwd())
from harness.environment import find
environment = find("test")
sys.path[:0] = [os.fspath(environment.comfyui), *map(os.fspath, environment.pythonpath)]
sys.argv = ["start", "--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import nodes, server, comfy.samplers, comfy_api.latest
loaded = set(sys.modules)
started = time.process_time()
spec = importlib.util.spec_from_file_location("pack", os.path.join(os.getcwd(), "__init__.py"),
submodule_search_locations=[os.getcwd()])
sys.modules["pack"] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
async def start():
    extension = await module.comfy_entrypoint()
    for node in await extension.get_node_list():
        node.GET_SCHEMA()
asyncio.run(start())
print(json.dumps({"ms": (time.process_time() - started) * 1e3, "new": sorted(set(sys.modules) - loaded)}))
"""


def measure() -> Iterator[Row]:
    """Importing the pack and describing its nodes, in a process where ComfyUI is loaded."""
    found = []
    # Python compiles the pack at its first start alone: that round doesn't count.
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(1 + ROUNDS):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout.splitlines()[-1]))
    found = found[1:]
    others = sorted({name.partition(".")[0] for name in found[0]["new"]} - {"pack"})
    yield Row(
        "import and describe the nodes",
        median(one["ms"] for one in found),
        "ms",
        "<= 50",
        f"also imports {', '.join(others) or 'nothing'}",
    )
    yield Row("heavy packages imported", sum(name in HEAVY for name in others), "", "<= 0")
