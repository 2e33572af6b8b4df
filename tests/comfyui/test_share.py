"""Alignments and directions as files: saved once, loaded instead of made, and never outside their folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import directions
from directions.__main__ import main
from harness.server import GraphError
from tests.comfyui.graphs import ask, graph, shown
from tests.few import few


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


def test_one_command_aligns_to_every_encoder_that_there_is_and_says_what_to_publish(tiny, capsys):
    """The small encoder, which a saved workflow loads; a checkpoint that is none doesn't stop it."""
    workflows = tiny.base / "user" / "default" / "workflows"
    workflows.mkdir(parents=True, exist_ok=True)
    nodes = [{"type": "SafetyDirectionSmallEncoder"}, {"type": "CLIPLoader", "widgets_values": ["absent.safetensors", "wan"]}]
    (workflows / "mine.json").write_text(json.dumps({"nodes": nodes}))
    broken = tiny.base / "models" / "checkpoints" / "broken.safetensors"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"no weights")
    fewer = few(directions.load("smollm2-135m-instruct"), 300)
    fewer.save(tiny.base / "models" / "safety_directions" / "fewer.safetensors")
    command = ["align-all", "--server", tiny.url, "--direction", "fewer"]
    try:
        assert main(command) == 0
        said = capsys.readouterr()
        (file,) = (tiny.base / "models" / "safety_directions" / "aligned").glob("safetydirectionsmallencoder-fewer.*")
        assert "broken.safetensors: node encoder (CheckpointLoaderSimple) failed" in said.out
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"{file.name}  {file.stat().st_size / 1e6:.1f} MB  sha256 {digest}" in said.out
        assert "/300 [" in said.err  # the bar
        written = file.stat().st_mtime_ns
        assert main(command) == 0 and "there already" in capsys.readouterr().out
        assert file.stat().st_mtime_ns == written
        file.unlink()
        assert main(command) == 0 and file.is_file()
    finally:
        broken.unlink()
        (workflows / "mine.json").unlink()


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
