import json
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import directions
from directions import DirectionFormatError, files
from directions.direction import read_direction
from directions.encoder import AlignedEncoder, Place, load_aligned_encoder


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
    for wrong, message in ((counts + 1, "add up to the 800 token scores"), (counts[1:], "shapes")):
        with pytest.raises((DirectionFormatError, ValueError), match=message):
            directions.load(replace(full, token_counts=wrong).save(tmp_path / "wrong.safetensors"))


def test_an_aligned_direction_survives_the_file(planted, aligned, tmp_path):
    loaded = directions.load_aligned(aligned.save(tmp_path / "aligned.safetensors"))
    for mode in ("add", "gate", "project"):
        assert torch.equal(loaded.steer(planted.unsafe, mode=mode), aligned.steer(planted.unsafe, mode=mode))
    assert loaded.fit == aligned.fit


def test_an_aligned_encoder_survives_the_file_and_knows_its_encoder(aligned, tmp_path):
    probes = {"cond": torch.randn(32), "pooled_output": torch.randn(32)}
    places = {s: Place(s, ("l",), aligned.width, aligned.width, length=77, before=1, chunk=77, unmasked=True) for s in probes}
    encoder = AlignedEncoder(slots={s: aligned for s in probes}, places=places, probes=probes, padding={"cond": torch.ones(aligned.width + 1)})
    loaded = load_aligned_encoder(encoder.save(tmp_path / "encoder.safetensors"))
    assert set(loaded.slots) == set(probes) and loaded.places == places and list(loaded.padding) == ["cond"]
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
    with pytest.raises(OSError, match="no space left"):
        files.write_bytes(saved, b"new")
    assert saved.read_bytes() == old and [p.name for p in saved.parent.iterdir()] == [saved.name]
