"""Write the test vectors of docs/file-format.md into this folder; standard library only.

    python docs/vectors/make.py

`expected.json` says what a reader gets from each sound file, and what is wrong with each of the others.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
Tensors = dict[str, tuple[str, list[int], list[float]]]  # name: dtype, shape, values in row-major order

METADATA = {
    "format_version": 1,
    "kind": "direction",
    "source": {"model": "example", "layers": [3], "pooling": "mean"},
    "categories": ["hate", "violence"],
    "anchor_prompts": ["a red bicycle", "ein grüner Apfel", "一杯茶"],
    "pairs": {"hate": 2, "violence": 3},
    "licence": "CC0-1.0",
    "created": "2026-01-01T00:00:00+00:00",
    "tool_version": "0.1.0",
}
TENSORS: Tensors = {
    "anchors.states": ("F16", [3, 2], [1.0, -2.0, 0.5, 0.25, -0.125, 65504.0]),
    "direction.global": ("F32", [2], [0.5, -1.5]),
    "direction.hate": ("F32", [2], [0.0, 1.0]),
    "direction.violence": ("F32", [2], [-1.0, 0.0]),
    "reader.global": ("F32", [2], [-2.0, 3.0]),
    "reader.hate": ("F32", [2], [0.25, -1.0]),
    "reader.violence": ("F32", [2], [1.0, 1.0]),
}
SCORES: Tensors = {
    "anchors.prompt_scores": ("F16", [3, 3], [0.5, -0.5, 1.0, -1.0, 0.0, 0.25, 2.0, 1.5, -0.75]),
    "anchors.token_scores": ("F16", [4, 3], [0.0, 1.0, -1.0, 0.5, 0.5, 0.5, -2.0, 0.25, 0.0, 1.0, 1.0, 1.0]),
    "anchors.token_counts": ("F32", [3], [2.0, 1.0, 1.0]),
}
BYTES: Tensors = {
    "anchors.states": ("I8", [3, 2], [-128, 127, 0, -128, 127, 3]),
    "anchors.states_grid": ("F32", [2, 2], [0.0, 0.5, 0.25, 0.125]),
}


def header_and_data(tensors: Tensors, metadata: Any) -> tuple[dict[str, Any], bytes]:
    """A safetensors header as an object, and the data that it describes."""
    header: dict[str, Any] = {
        "__metadata__": {"safety_direction": metadata if isinstance(metadata, str) else json.dumps(metadata)}
    }
    data = b""
    for name, (dtype, shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}{ {'F32': 'f', 'F16': 'e', 'I8': 'b', 'I64': 'q'}[dtype] }", *values)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    return header, data


def join(header: dict[str, Any] | str, data: bytes) -> bytes:
    """The bytes of the file."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + data


def sound() -> dict[str, bytes]:
    """Files that a reader must take."""
    no_category = {**METADATA, "categories": [], "anchor_prompts": ["one", "two"], "pairs": {}, "licence": ""}
    smallest: Tensors = {"direction.global": ("F32", [1], [1.0]), "anchors.states": ("F16", [2, 1], [0.0, 1.0])}
    without_readers = {name: tensor for name, tensor in TENSORS.items() if not name.startswith("reader.")}
    header, data = header_and_data(TENSORS, METADATA)
    translations = [["de", 0, "ein rotes Fahrrad"], ["zh-Hans", 0, "一辆红色自行车"]]
    return {
        "smallest": join(*header_and_data(smallest, no_category)),
        "without-readers": join(*header_and_data(without_readers, METADATA)),
        "with-readers": join(header, data),
        "with-mentions": join(*header_and_data(TENSORS, {**METADATA, "mentions": ["ein grüner Apfel"]})),
        "with-near": join(*header_and_data(TENSORS, {**METADATA, "near": ["ein grüner Apfel"]})),
        "with-scores": join(*header_and_data({**TENSORS, **SCORES}, METADATA)),
        "with-translations": join(*header_and_data({**TENSORS, **SCORES}, {**METADATA, "translations": translations})),
        "with-bytes": join(*header_and_data({**TENSORS, **BYTES}, METADATA)),
        # The order in the header says nothing; spaces may follow it; metadata may hold more than is known.
        "any-order": join(
            json.dumps(
                dict(reversed(header_and_data(TENSORS, {**METADATA, "note": "more"})[0].items())), ensure_ascii=False
            )
            + "   ",
            data,
        ),
    }


def broken() -> dict[str, tuple[bytes, str]]:
    """Files that a reader must refuse, and what is wrong with them."""
    found: dict[str, tuple[bytes, str]] = {}

    def add(name: str, why: str, content: bytes) -> None:
        found[name] = content, why

    def with_header(name: str, why: str, change: Callable[[dict[str, Any]], Any]) -> None:
        header, data = header_and_data(TENSORS, METADATA)
        change(header)
        add(name, why, join(header, data))

    def with_metadata(name: str, why: str, **changes: Any) -> None:
        add(name, why, join(*header_and_data(TENSORS, {**METADATA, **changes})))

    def with_tensors(name: str, why: str, **changes: Any) -> None:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        add(
            name,
            why,
            join(*header_and_data({key: value for key, value in {**TENSORS, **changed}.items() if value}, METADATA)),
        )

    whole = join(*header_and_data(TENSORS, METADATA))
    header, data = header_and_data(TENSORS, METADATA)
    text = json.dumps(header)
    add("empty", "no bytes at all", b"")
    add("truncated", "the data ends early", whole[:-1])
    add("trailing", "bytes follow the last tensor", whole + b"\0")
    add("header-too-long", "the header's length is more than the file", struct.pack("<Q", 1 << 62) + whole[8:])
    add("header-not-json", "the header is not JSON", join(text[:-1], data))
    add(
        "name-twice",
        "a name stands twice in the header",
        join(text[:-1] + ', "direction.global": ' + json.dumps(header["direction.global"]) + "}", data),
    )
    with_header("no-metadata", "there is no safety_direction in the metadata", lambda h: h.pop("__metadata__"))
    add("metadata-not-json", "the metadata is not JSON", join(*header_and_data(TENSORS, "format_version: 1")))
    add(
        "metadata-nan",
        "NaN is no JSON number",
        join(*header_and_data(TENSORS, json.dumps({**METADATA, "pairs": {"hate": float("nan")}}))),
    )
    with_metadata("version", "the format version is another", format_version=2)
    with_metadata("kind", "the kind is another", kind="aligned")
    with_metadata("no-model", "the source names no model", source={})
    with_metadata("category-name", "a category has a capital letter", categories=["Hate", "violence"])
    with_metadata("category-twice", "a category stands twice", categories=["hate", "hate"])
    with_metadata("category-missing", "a category has no tensor", categories=["hate", "violence", "weather"])
    with_metadata("prompts", "there are fewer prompts than anchors", anchor_prompts=["a red bicycle"])
    with_metadata("prompt-empty", "an anchor prompt is empty", anchor_prompts=["a red bicycle", "", "tea"])
    with_metadata("mention-unknown", "a mention is no anchor prompt", mentions=["a blue bicycle"])
    with_metadata(
        "mentions-alone", "one anchor is no mention; two are the fewest", mentions=["a red bicycle", "一杯茶"]
    )
    with_metadata("near-unknown", "a prompt near the line is no anchor prompt", near=["a blue bicycle"])
    with_metadata(
        "near-alone", "one anchor is everyday; two are the fewest", mentions=["a red bicycle"], near=["一杯茶"]
    )
    with_metadata("translation-language", "a language is no code", translations=[["German", 0, "ein rotes Fahrrad"]])
    with_metadata("translation-number", "there is no such anchor", translations=[["de", 3, "ein rotes Fahrrad"]])
    with_metadata("translation-empty", "a translation is empty", translations=[["de", 0, ""]])
    with_tensors("no-global", "direction.global is missing", direction__global=None)
    with_tensors("one-reader-missing", "there are readers, but not for every name", reader__hate=None)
    with_tensors("unknown-tensor", "a tensor has a name that no tensor has", weather=("F32", [1], [1.0]))
    with_tensors("width", "a direction is wider than the anchors", direction__hate=("F32", [3], [0.0, 1.0, 0.0]))
    with_tensors("one-anchor", "there is one anchor; two are the fewest", anchors__states=("F16", [1, 2], [1.0, 2.0]))
    with_tensors("dtype", "a tensor is neither F32 nor F16", direction__hate=("I64", [2], [0, 1]))
    with_tensors(
        "not-finite",
        "an anchor state is infinite",
        anchors__states=("F16", [3, 2], [1.0, -2.0, 0.5, float("inf"), 0.0, 1.0]),
    )
    with_tensors("grid-missing", "there are states in bytes and no grid", anchors__states=BYTES["anchors.states"])
    with_tensors("grid-alone", "there is a grid and no states in bytes", anchors__states_grid=BYTES["anchors.states_grid"])
    with_tensors(
        "grid-negative",
        "the grid goes backwards",
        anchors__states=BYTES["anchors.states"],
        anchors__states_grid=("F32", [2, 2], [0.0, 0.5, -0.25, 0.125]),
    )
    with_tensors("all-zero", "a direction is all zeros", direction__hate=("F32", [2], [0.0, 0.0]))
    with_tensors("prompt-scores", "a name has no prompt scores", anchors__prompt_scores=("F16", [3, 2], [0.0] * 6))
    with_tensors(
        "counts-alone",
        "there are token counts and no token scores",
        anchors__token_counts=SCORES["anchors.token_counts"],
    )
    with_tensors(
        "counts",
        "the counts don't add up to the token scores",
        anchors__token_scores=SCORES["anchors.token_scores"],
        anchors__token_counts=("F32", [3], [2.0, 2.0, 1.0]),
    )
    with_header("shape", "the shape needs more bytes than it has", lambda h: h["direction.global"].update(shape=[3]))
    with_header("shape-negative", "a shape is negative", lambda h: h["direction.global"].update(shape=[-2]))
    with_header(
        "overlap",
        "two tensors share bytes",
        lambda h: h["direction.hate"].update(data_offsets=h["direction.global"]["data_offsets"]),
    )
    with_header("gap", "bytes belong to no tensor", lambda h: h.pop("reader.violence"))
    return found


def content(file: bytes) -> dict[str, Any]:
    """What a reader gets: every tensor's shape and values, and the metadata."""
    length = struct.unpack("<Q", file[:8])[0]
    header = json.loads(file[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["safety_direction"])
    tensors = {}
    for name in sorted(header):
        start, stop = (8 + length + offset for offset in header[name]["data_offsets"])
        size, letter = {"F32": (4, "f"), "F16": (2, "e"), "I8": (1, "b")}[header[name]["dtype"]]
        tensors[name] = {
            "shape": header[name]["shape"],
            "values": list(struct.unpack(f"<{(stop - start) // size}{letter}", file[start:stop])),
        }
    return {"metadata": metadata, "tensors": tensors}


def vectors() -> dict[str, bytes]:
    """Every file by name, `expected.json` among them."""
    files = {f"{name}.safetensors": file for name, file in sound().items()}
    refused = {f"broken-{name}.safetensors": (file, why) for name, (file, why) in broken().items()}
    expected = {
        "sound": {name: content(file) for name, file in files.items()},
        "broken": {name: why for name, (_, why) in refused.items()},
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False) + "\n"
    return {**files, **{name: file for name, (file, _) in refused.items()}, "expected.json": text.encode()}


if __name__ == "__main__":
    for name, file in vectors().items():
        (HERE / name).write_bytes(file)
