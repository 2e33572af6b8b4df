"""The workflows that ComfyUI's template browser shows, from what stands here and a live `/object_info`.

python -m harness.templates            # writes example_workflows/*.json and subgraphs/*.json
python -m harness.pictures             # and their pictures, by a Chromium that looks at them
"""

from __future__ import annotations

import json
from pathlib import Path

from .blueprint import safe_prompt
from .build import MODELS
from .graphs import TEMPLATES
from .layout import Info

FOLDER = "example_workflows"

__all__ = ["FOLDER", "MODELS", "TEMPLATES", "make", "pretend_weights"]


def make(info: Info) -> dict[str, str]:
    """Every file as JSON text, by its path in the pack."""
    files = {f"{FOLDER}/{name}.json": build().workflow(info, name) for name, build in TEMPLATES.items()}
    files["subgraphs/Safe prompt.json"] = safe_prompt(info)
    return {path: json.dumps(content, indent=1, ensure_ascii=False) + "\n" for path, content in files.items()}


def pretend_weights(models: Path) -> None:
    """Put empty files where the templates want weights, so that no node is red."""
    files = [(folder, name) for name, (_, folder) in MODELS.items()] + [("LLM", "SmolLM2-135M-Instruct.Q4_1.gguf")]
    for folder, name in files:
        (models / folder).mkdir(exist_ok=True)
        (models / folder / name).touch()
