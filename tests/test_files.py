import json
import os
import random
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import directions
from benchmarks.trust import files as trust
from directions import DirectionFormatError, files
from directions.alignment import Alignment, load_aligned_encoder
from directions.direction import read_direction
from directions.place import Place


def parts(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def rebuild(path, header, body):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


@pytest.fixture
def saved(planted, tmp_path):
    return planted.direction.save(tmp_path / "planted.safetensors")


def test_a_direction_survives_the_file(planted, saved):
    loaded = directions.load(saved)
    assert loaded.anchor_prompts == planted.direction.anchor_prompts and loaded.categories == ("hate", "violence")
    assert loaded.fingerprint == planted.direction.fingerprint
    assert all(torch.equal(loaded.vectors[name], planted.direction.vectors[name]) for name in loaded.vectors)


def test_token_scores_survive_the_file_and_must_add_up(planted, tmp_path):
    counts = torch.full((len(planted.states),), 2)
    full = replace(planted.direction, token_scores=torch.randn(int(counts.sum()), 3).half(), token_counts=counts)
    loaded = directions.load(full.save(tmp_path / "scored.safetensors"))
    assert torch.equal(loaded.token_scores, full.token_scores) and torch.equal(loaded.token_counts, counts)
    assert loaded.fingerprint == full.fingerprint != planted.direction.fingerprint
    cut_elsewhere = replace(full, token_counts=torch.cat([counts[:1] + 1, counts[1:2] - 1, counts[2:]]))
    assert cut_elsewhere.fingerprint != full.fingerprint
    for wrong, message in ((counts + 1, "add up to the 800 token scores"), (counts[1:], "shapes")):
        with pytest.raises((DirectionFormatError, ValueError), match=message):
            directions.load(replace(full, token_counts=wrong).save(tmp_path / "wrong.safetensors"))


def test_mentions_survive_the_file_and_are_anchor_prompts(planted, tmp_path):
    named = replace(planted.direction, mentions=("prompt 3", "prompt 8"))
    loaded = directions.load(named.save(tmp_path / "named.safetensors"))
    assert loaded.mentions == named.mentions and loaded.mentioned.nonzero().flatten().tolist() == [3, 8]
    assert loaded.fingerprint == named.fingerprint != planted.direction.fingerprint
    elsewhere = replace(named, mentions=("prompt 3", "an anchor that was cut"))
    assert directions.load(elsewhere.save(tmp_path / "cut.safetensors")).mentions == ("prompt 3",)
    with pytest.raises(ValueError, match="fewer than two other anchors"):
        replace(named, mentions=named.anchor_prompts[1:]).save(tmp_path / "all.safetensors")


def test_an_aligned_direction_survives_the_file(planted, aligned, tmp_path):
    loaded = directions.load_aligned(aligned.save(tmp_path / "aligned.safetensors"))
    for mode in ("add", "gate", "project"):
        assert torch.equal(loaded.steer(planted.unsafe, mode=mode), aligned.steer(planted.unsafe, mode=mode))
    assert loaded.fit == aligned.fit


def test_an_aligned_encoder_survives_the_file_and_knows_its_encoder(aligned, tmp_path):
    probes = {"cond": torch.randn(32), "pooled_output": torch.randn(32)}
    width = aligned.slot.width
    places = {s: Place(s, ("l",), width, width, length=77, before=1, chunk=77, unmasked=True) for s in probes}
    slots = {s: replace(aligned.slot, place=places[s], probe=probes[s]) for s in probes}
    slots["cond"] = replace(slots["cond"], padding=torch.ones(width + 1))
    loaded = load_aligned_encoder(Alignment(slots).save(tmp_path / "encoder.safetensors"))
    assert set(loaded.slots) == set(probes) and loaded.places == places
    assert loaded.slots["cond"].padding is not None and loaded.slots["pooled_output"].padding is None
    assert loaded.fits({s: p.half() for s, p in probes.items()})
    assert not loaded.fits({**probes, "cond": probes["cond"] + torch.randn(32)})
    assert not loaded.fits({"cond": probes["cond"]})


def change_version(header):
    metadata = json.loads(header["__metadata__"][files.METADATA_KEY])
    metadata["format_version"] = 2
    header["__metadata__"][files.METADATA_KEY] = json.dumps(metadata)


def set_entry(name, **changes):
    return lambda header: header[name].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_version, "version 2; this reader knows 'direction' version 1"),
        (lambda h: h.pop("__metadata__"), "metadata 'safety_direction' is missing"),
        (lambda h: h["__metadata__"].update({files.METADATA_KEY: "[1]"}), "not a JSON object"),
        (lambda h: h["__metadata__"].update({files.METADATA_KEY: "{NaN}"}), "not JSON"),
        (set_entry("direction.global", dtype="I64"), "dtype 'I64'"),
        (set_entry("direction.global", dtype="F16", shape=[48]), "direction.global has dtype F16"),
        (set_entry("direction.global", shape=[-1]), "positive whole numbers"),
        (set_entry("direction.global", shape=[1 << 60]), "positive whole numbers"),
        (set_entry("direction.global", shape=[23]), "can't hold shape"),
        (set_entry("direction.global", data_offsets=[4, 100]), "overlap|gap"),
        (lambda h: h.update({"direction.evil": h.pop("direction.hate")}), "missing or unknown"),
    ],
)
def test_a_wrong_header_says_what_is_wrong(saved, change, message):
    header, body = parts(saved)
    change(header)
    with pytest.raises(DirectionFormatError, match=message):
        read_direction(rebuild(saved, header, body))


def test_nan_inside_is_refused(planted, saved):
    header, body = parts(saved)
    start = header["direction.hate"]["data_offsets"][0]
    body = body[:start] + torch.full((1,), torch.nan).numpy().tobytes() + body[start + 4 :]
    with pytest.raises(DirectionFormatError, match=r"'direction.hate' has NaN"):
        read_direction(rebuild(saved, header, body))


def test_a_header_bomb_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "bomb.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    with pytest.raises(DirectionFormatError, match="claims 4611686018427387904 bytes"):
        read_direction(path)


def test_deep_and_duplicate_json_are_refused(tmp_path):
    for text in ("[" * 100000, '{"a": 1, "a": 2}', "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")):
        with pytest.raises(DirectionFormatError):
            read_direction(rebuild(tmp_path / "x.safetensors", text, b""))


def test_missing_file_folder_and_device(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_direction(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="smollm2-135m-instruct"):
        directions.load("../../etc/passwd")
    with pytest.raises(DirectionFormatError, match="folder"):
        read_direction(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DirectionFormatError, match="not a regular file"):
        read_direction(tmp_path / "pipe")


def rewrite(path, change):
    """The file with its metadata changed."""
    header, body = parts(path)
    metadata = json.loads(header["__metadata__"][files.METADATA_KEY])
    change(metadata)
    header["__metadata__"][files.METADATA_KEY] = json.dumps(metadata)
    return rebuild(path, header, body)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["anchor_prompts"].__setitem__(0, "half a pair \ud800"), "not JSON: .*surrogates"),
        (lambda m: m["pairs"].update(count=float("inf")), "a number that JSON doesn't have: inf"),
        (lambda m: m["anchor_prompts"].__setitem__(0, "a" * 2001), "1 to 2000 letters"),
        (lambda m: m.update(mentions="prompt 1"), "mentions are not a list of anchor prompts"),
        (lambda m: m.update(mentions=["prompt 1", 2]), "mentions are not a list of anchor prompts"),
        (lambda m: m.update(mentions=["somewhere else"]), "mentions are not a list of anchor prompts"),
        (lambda m: m["source"].update(many=[0] * files.MAX_VALUES), "more than 131072 values"),
    ],
)
def test_metadata_that_could_not_be_used_later_is_refused_now(saved, change, message):
    with pytest.raises(DirectionFormatError, match=message):
        read_direction(rewrite(saved, change))


def test_a_number_beyond_all_numbers_is_refused(saved):
    header, body = parts(saved)
    text = json.dumps(header).replace('\\"pairs\\": {', '\\"pairs\\": {\\"n\\": 1e999')
    with pytest.raises(DirectionFormatError, match="doesn't have: inf"):
        read_direction(rebuild(saved, text, body))


@pytest.mark.parametrize("value", [0.0, 1e-40, 1e38])
def test_a_direction_of_next_to_no_or_endless_length_is_refused(planted, saved, value):
    header, body = parts(saved)
    start, stop = header["direction.hate"]["data_offsets"]
    with pytest.raises(DirectionFormatError, match=r"direction.hate is .* long"):
        read_direction(rebuild(saved, header, body[:start] + torch.full((24,), value).numpy().tobytes() + body[stop:]))


@pytest.mark.parametrize("name", ["reading_moments", "score_moments", "token_moments", "bank_spacing", "readers"])
def test_an_alignment_that_would_divide_by_zero_or_overflow_is_refused(aligned, tmp_path, name):
    broken = Alignment(
        {"states": replace(aligned.slot, **{name: getattr(aligned.slot, name) * (1e30 if name == "readers" else 0)})}
    )
    with pytest.raises(DirectionFormatError, match="spread is not positive|readers has a value of"):
        directions.load_aligned(broken.save(tmp_path / "aligned.safetensors"))


def test_an_alignment_of_another_version_asks_to_be_made_again(aligned, tmp_path):
    path = aligned.save(tmp_path / "aligned.safetensors")
    with safe_open(path, framework="pt") as stream:
        tensors, metadata = (
            {name: stream.get_tensor(name) for name in stream.keys() if name != "bank_spacing"},
            stream.metadata(),
        )
    save_file(tensors, path, metadata)
    with pytest.raises(
        DirectionFormatError,
        match="bank_spacing.* missing or unknown: another version may have made it, so align again",
    ):
        directions.load_aligned(path)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 8},
        {"columns": 8},
        {"chunk": -77},
        {"layer": -1},
        {"part": 1},
        {"tensor": "pooled_output"},
        {"keys": "l"},
    ],
)
def test_a_place_where_no_slot_can_be_is_refused(aligned, tmp_path, change):
    width = aligned.slot.width
    slot = replace(aligned.slot, place=Place("cond", ("l",), width, width, length=77), probe=torch.ones(width))
    path = Alignment({"cond": slot}).save(tmp_path / "encoder.safetensors")
    with pytest.raises(DirectionFormatError, match="'cond': the metadata's place is not"):
        load_aligned_encoder(rewrite(path, lambda m: m["slots"]["cond"]["place"].update(change)))


BOMBS = {
    "empty lists": lambda: '{"a": [' + "[]," * 43_000 + "[]]}",
    "short names": lambda: "{" + ",".join(f'"{n:x}":0' for n in range(65_000)) + "}",
    "wide letters": lambda: '{"a": "😀' + "b" * (files.MAX_HEADER_BYTES - 100) + '"}',
    "long numbers": lambda: '{"a": [' + "9" * 4000 + ("," + "9" * 4000) * 1000 + "]}",
    "deep": lambda: '{"a":' * 60_000,
}
METERED = """
import sys, time
from benchmarks.trust.files import Meter, samples, sound
from directions.files import DirectionFormatError
from directions.direction import read_direction
from pathlib import Path
sound(0, samples()[0][1].save(Path(sys.argv[1]).parent / "warm.safetensors"))
meter = Meter()
for path in map(Path, sys.argv[1:]):
    try:
        meter(lambda: read_direction(path), path.stat().st_size)
    except DirectionFormatError as error:
        continue
    sys.exit(f"{path.name} was read")
"""


def test_header_bombs_stay_within_64_mb_of_the_file(tmp_path, pytestconfig):
    paths = []
    for name, make in BOMBS.items():
        paths.append(rebuild(tmp_path / f"{name}.safetensors", make(), b""))
        inner = {"__metadata__": {files.METADATA_KEY: make()}}
        text = json.dumps(inner, ensure_ascii=False)
        if len(text.encode()) <= files.MAX_HEADER_BYTES:
            paths.append(rebuild(tmp_path / f"{name} in the metadata.safetensors", text, b""))
    done = subprocess.run(
        [sys.executable, "-c", METERED, *map(str, paths)], capture_output=True, text=True, cwd=pytestconfig.rootpath
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_links_sockets_and_devices(saved, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(saved)
    assert read_direction(link).width == 24  # whoever can make a link there may say where a file is
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    for name in ("loop.safetensors", "socket"):
        with pytest.raises(DirectionFormatError, match="can't be read"):
            read_direction(tmp_path / name)
    with pytest.raises(DirectionFormatError, match="not a regular file"):
        read_direction("/dev/zero")


@pytest.mark.parametrize("name", ["anchor_states", "vectors"])
def test_what_could_not_be_read_is_not_written(planted, tmp_path, name):
    big = {
        "anchor_states": planted.direction.anchor_states.float() * 1e9,
        "vectors": {k: v * torch.inf for k, v in planted.direction.vectors.items()},
    }
    with pytest.raises(ValueError, match=r"x.safetensors can't be written: tensor .* has NaN or infinite"):
        replace(planted.direction, **{name: big[name]}).save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_a_kill_left_is_swept_and_a_write_under_way_is_not(saved):
    stale, busy, other = (
        saved.parent / f".{name}.partial"
        for name in ("planted.safetensors.old", "planted.safetensors.new", "neighbour.safetensors.old")
    )
    for path in (stale, busy, other):
        path.write_bytes(b"half")
    for path in (stale, other):
        os.utime(path, (0, 0))
    files.write_bytes(saved, b"new")
    assert {p.name for p in saved.parent.iterdir()} == {saved.name, busy.name, other.name}


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_of_every_kind_load_soundly_or_are_refused(tmp_path, seed):
    path = tmp_path / "m.safetensors"
    fresh = [bytes([reader]) + sample.save(path).read_bytes() for reader, sample in trust.samples()]

    def plain(data, size):
        draw = random.Random(len(data) + seed)
        return bytes(byte ^ (draw.random() < 0.01) for byte in data)[: draw.choice([size, len(data) // 2])]

    outcomes = set()
    for number in range(400):
        data = trust.mutate(fresh[seed], trust.LARGEST, 1000 * seed + number, plain, [fresh[seed]])
        path.write_bytes(data[1:])
        try:
            trust.sound(seed, path)
            outcomes.add("sound")
        except DirectionFormatError as error:
            outcomes.add(str(error)[:30])
    assert "sound" in outcomes and len(outcomes) > 10


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_any_mutation_loads_or_is_refused(planted, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("mutated") / "m.safetensors"
    planted.direction.save(path)
    content = bytearray(path.read_bytes())
    header = int.from_bytes(content[:8], "little") + 8
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, header), st.integers(0, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        loaded = read_direction(path)
    except DirectionFormatError:
        return
    assert torch.isfinite(loaded.anchor_states).all() and loaded.width == 24


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    old = saved.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left on device")))
    with pytest.raises(OSError, match="no space left on device; nothing was written: .*planted.safetensors"):
        files.write_bytes(saved, b"new")
    assert saved.read_bytes() == old and [p.name for p in saved.parent.iterdir()] == [saved.name]
