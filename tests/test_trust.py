"""The campaigns of `benchmarks.trust`, in short, and disks that take nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from directions.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
KILLS = """
import sys
from pathlib import Path
from benchmarks.trust.kills import campaign
found = campaign(Path(sys.argv[1]), 10, 16)
assert all(found[name] == 4 for name in ("save", "estimate", "align", "evaluate")), found
"""


def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path):
    # A process of its own: it forks, and this one has threads.
    done = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(params=["full", "read-only"])
def disk(request, tmp_path):
    """A file system of 64 KB that is full, or one that can't be written to."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = "size=64k" if request.param == "full" else "size=64k,ro"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_takes_nothing_is_named_and_left_clean(planted, disk, tmp_path):
    with pytest.raises(
        OSError, match=r"(No space left on device|Read-only file system); nothing was written: .*d.safetensors"
    ):
        _large(planted).save(disk / "d.safetensors")
    assert not list(disk.iterdir())


def test_an_old_file_survives_a_full_disk(planted, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root on Linux")
    try:
        old = planted.direction.save(folder / "d.safetensors").read_bytes()
        with pytest.raises(OSError, match="No space left"):
            _large(planted).save(folder / "d.safetensors")
        assert (folder / "d.safetensors").read_bytes() == old and len(list(folder.iterdir())) == 1
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_the_command_line_says_in_one_line_that_nothing_was_written(disk, tmp_path, capsys):
    import torch
    from safetensors.torch import save_file

    import directions

    states = directions.load("smollm2-135m-instruct").anchor_states.float()[:, :64].contiguous()
    save_file({"states": states + 0.01 * torch.randn(states.shape)}, tmp_path / "states.safetensors")
    assert (
        main(
            [
                "align",
                "smollm2-135m-instruct",
                str(tmp_path / "states.safetensors"),
                "--method",
                "svd",
                "--out",
                str(disk / "a.safetensors"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "nothing was written" in error and error.count("\n") == 1


def _large(planted):
    from dataclasses import replace

    direction = planted.direction
    many = 10 * len(direction.anchor_prompts)
    return replace(
        direction,
        anchor_states=direction.anchor_states.repeat(10, 1),
        anchor_prompts=tuple(f"prompt {i}" for i in range(many)),
    )
