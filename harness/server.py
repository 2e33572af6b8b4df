"""Start a real ComfyUI with this node pack in it, and talk to it over its own HTTP and WebSocket interface.

with Server() as comfyui:
    result = comfyui.queue({"1": {"class_type": "EmptyImage", "inputs": {...}}, "2": {...}})
    png = comfyui.image(result.images[0])
"""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import websocket

from .environment import Environment, find

if TYPE_CHECKING:
    from typing import Self

ROOT = Path(__file__).resolve().parent.parent
PACK = "safety-directions"

#: Left out where the pack has to be copied rather than linked.
_NOT_THE_PACK = shutil.ignore_patterns(".*", "__pycache__", "demo-output", "shared")

# Requests go to this machine; a proxy from the environment would only be in the way.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(RuntimeError):
    """ComfyUI did not start, went away, or refused a request; where it is ours, the message ends with its log."""


class GraphError(RuntimeError):
    """A graph is invalid, failed while running, or was interrupted.

    `node_id` and `node_type` name the node at fault; both are None when it is the graph as a whole.
    """

    def __init__(self, message: str, node_id: str | None = None, node_type: str | None = None, trace: str = "") -> None:
        where = "" if node_id is None else f"node {node_id} ({node_type}): "
        super().__init__(where + message)
        self.node_id = node_id
        self.node_type = node_type
        self.message = message
        #: Python's traceback inside ComfyUI, where there is one.
        self.trace = trace


class Progress(NamedTuple):
    """A node started (`value` 0 of 0), or has come this far."""

    node_id: str
    node_type: str
    value: float
    maximum: float


@dataclass(frozen=True)
class Result:
    """What a finished graph left behind."""

    prompt_id: str
    #: Per node id what the node showed in the interface: {"images": [...]}, {"text": [...]}, ...
    outputs: dict[str, dict[str, Any]]
    #: Ids of the nodes whose outputs came from ComfyUI's cache.
    cached: frozenset[str] = frozenset()
    #: From being queued to being finished.
    seconds: float = 0.0

    @property
    def images(self) -> list[dict[str, str]]:
        """References to every picture that was shown or saved, in the order of the nodes; see `Client.image`."""
        return [picture for shown in self.outputs.values() for picture in shown.get("images", ())]


class Client:
    """A connection to a running ComfyUI at `url`, for example `http://127.0.0.1:8188`.

    Every method raises `ServerError` when ComfyUI cannot be reached or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def system_stats(self) -> dict[str, Any]:
        """ComfyUI's version, its arguments, and the devices it sees."""
        return self._json("/system_stats")

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Every node type's description, by node id."""
        return self._json("/object_info")

    def queue(
        self,
        prompt: Mapping[str, Mapping[str, Any]],
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float = 600.0,
        targets: Sequence[str] | None = None,
    ) -> Result:
        """Run a graph and wait until it has finished.

        Args:
            prompt: the graph in API format: {node id: {"class_type": ..., "inputs": {...}}}.
            on_progress: called whenever a node starts or reports progress.
            timeout: seconds. When they are over, or on Ctrl-C, the graph is taken from the queue or interrupted.
            targets: the output nodes to run; None runs all.

        Raises:
            GraphError: the graph is invalid in any part, a node raised, or somebody interrupted it.
            TimeoutError: it took too long.
        """
        started = time.monotonic()
        types = {node_id: str(node.get("class_type")) for node_id, node in prompt.items()}
        client_id = uuid.uuid4().hex
        # Connected before the graph is queued, so that no message is missed.
        with contextlib.closing(self._websocket(client_id)) as messages:
            accepted = self._submit(prompt, client_id, types, targets)
            prompt_id = accepted["prompt_id"]
            try:
                # ComfyUI runs the valid rest of a graph of which some outputs are invalid. Here that is an error too.
                _raise_invalid(accepted, types)
                cached = self._follow(messages, prompt_id, types, on_progress, started + timeout)
            except BaseException:
                self._cancel(prompt_id)
                raise
        entry = self._json(f"/history/{prompt_id}").get(prompt_id)
        if entry is None:
            raise ServerError(f"ComfyUI ran prompt {prompt_id} but has no history of it")
        return Result(prompt_id, entry["outputs"], cached, time.monotonic() - started)

    def image(self, reference: Mapping[str, str]) -> bytes:
        """The bytes of a picture, from a reference as in `Result.images` or as `upload` returns it."""
        names = {"filename": reference.get("filename") or reference["name"]}
        names |= {key: reference[key] for key in ("subfolder", "type") if key in reference}
        return self._request("/view?" + urllib.parse.urlencode(names))

    def upload(self, name: str, content: bytes, subfolder: str = "") -> dict[str, str]:
        """Put a picture into ComfyUI's input folder, over one of the same name; LoadImage then takes `name`."""
        boundary = uuid.uuid4().hex
        parts = [
            (b'name="image"; filename="%s"\r\nContent-Type: application/octet-stream' % name.encode(), content),
            (b'name="subfolder"', subfolder.encode()),
            (b'name="overwrite"', b"true"),
        ]
        body = b"".join(
            b"--%s\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (boundary.encode(), head, value)
            for head, value in parts
        )
        body += b"--%s--\r\n" % boundary.encode()
        return json.loads(self._request("/upload/image", body, f"multipart/form-data; boundary={boundary}"))

    def interrupt(self) -> None:
        """Stop the graph that is running; its `queue` raises GraphError. Graphs that wait are not touched."""
        self._post("/interrupt", {})

    def free(self) -> None:
        """Have ComfyUI unload all models and forget all cached outputs, once nothing is running."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def _websocket(self, client_id: str) -> websocket.WebSocket:
        address = f"ws{self.url.removeprefix('http')}/ws?clientId={client_id}"
        try:
            return websocket.create_connection(address, timeout=30, http_no_proxy=["*"])
        except (OSError, websocket.WebSocketException) as error:
            raise self._failure(f"no WebSocket at {address}: {error}") from error

    def _submit(
        self, prompt: Mapping[str, Any], client_id: str, types: Mapping[str, str], targets: Sequence[str] | None
    ) -> dict[str, Any]:
        partly = {} if targets is None else {"partial_execution_targets": list(targets)}
        body = json.dumps({"prompt": prompt, "client_id": client_id, **partly}).encode()
        try:
            return json.loads(self._request("/prompt", body))
        except ServerError as error:
            refusal = error.__cause__
            if isinstance(refusal, urllib.error.HTTPError) and refusal.code == 400:
                _raise_invalid(json.loads(refusal.read()), types)
            raise

    def _follow(
        self,
        messages: websocket.WebSocket,
        prompt_id: str,
        types: Mapping[str, str],
        on_progress: Callable[[Progress], None] | None,
        deadline: float,
    ) -> frozenset[str]:
        """Read messages until the prompt has finished; return the ids of the nodes that were cached."""
        cached: frozenset[str] = frozenset()
        while True:
            remaining = deadline - time.monotonic()
            try:
                if remaining <= 0:
                    raise websocket.WebSocketTimeoutException
                messages.settimeout(remaining)
                frame = messages.recv()
            except websocket.WebSocketTimeoutException:
                raise TimeoutError(f"prompt {prompt_id} did not finish in time and was cancelled") from None
            except (OSError, websocket.WebSocketException) as error:
                raise self._failure(f"lost the connection while prompt {prompt_id} ran: {error}") from error
            if not isinstance(frame, str):
                continue  # a preview picture
            if not frame:
                raise self._failure(f"ComfyUI closed the connection while prompt {prompt_id} ran")
            message = json.loads(frame)
            kind, data = message["type"], message.get("data") or {}
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "execution_cached":
                cached = frozenset(data["nodes"])
            elif kind == "execution_error":
                text = f"{data['exception_type']}: {data['exception_message'].strip()}"
                trace = "".join(data.get("traceback") or ()) or text
                raise GraphError(text, data["node_id"], data["node_type"], trace)
            elif kind == "execution_interrupted":
                raise GraphError("interrupted", data.get("node_id"), data.get("node_type"))
            elif kind == "executing" and data["node"] is None:
                return cached  # the very last message; the history is written by then
            elif on_progress is not None and kind in ("executing", "progress"):
                # A node inside an expanded graph has an id of its own that the prompt does not know.
                node_id = str(data["node"])
                on_progress(Progress(node_id, types.get(node_id, "?"), data.get("value", 0), data.get("max", 0)))

    def _cancel(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, or stop it where it runs; nothing happens to one that has ended."""
        with contextlib.suppress(ServerError):
            self._post("/queue", {"delete": [prompt_id]})
            self._post("/interrupt", {"prompt_id": prompt_id})

    def _json(self, path: str) -> Any:
        return json.loads(self._request(path))

    def _post(self, path: str, content: Any) -> None:
        self._request(path, json.dumps(content).encode())

    def _request(
        self, path: str, body: bytes | None = None, kind: str = "application/json", timeout: float = 60
    ) -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind} if body is not None else {})
        try:
            with _http.open(request, timeout=timeout) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise ServerError(f"{path}: ComfyUI answers {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._failure(f"{path}: {error}") from error

    def _failure(self, what: str) -> ServerError:
        return ServerError(f"{self.url}{'' if what.startswith('/') else ' '}{what}")


def _raise_invalid(answer: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Raise what ComfyUI's validation found wrong, if anything: the first node as the culprit, all in the message."""
    found = []
    for node_id, errors in (answer.get("node_errors") or {}).items():
        text = "; ".join(f"{e['message']}: {e['details']}".rstrip(": ") for e in errors["errors"])
        found.append((node_id, errors.get("class_type") or types.get(node_id), text))
    if not found and answer.get("error"):
        error = answer["error"]
        extra = error.get("extra_info") or {}
        text = f"{error['message']} {error.get('details') or ''}".strip()
        found.append((extra.get("node_id"), extra.get("class_type"), text))
    if found:
        (node_id, node_type, text), *others = found
        also = "".join(f"\nnode {other} ({other_type}): {what}" for other, other_type, what in others)
        raise GraphError(text + also, node_id, node_type)


@dataclass(eq=False)
class Server(Client):
    """A ComfyUI of our own, on a free port of this machine, in a base directory of its own.

    Use it in a `with` statement, or call `start` and `stop`. Nothing of it outlives this process: it is killed on
    leaving the `with` statement, at exit, and on Linux also when this process is itself killed.
    """

    #: What to run; found when None (see `environment.find`).
    environment: Environment | None = None
    #: Node packs to install, and nothing else is: {folder name in custom_nodes: where it lies}.
    packs: Mapping[str, Path] = field(default_factory=lambda: {PACK: ROOT})
    #: ComfyUI's base directory (models, input, output, ...). A given one is kept; None makes one and removes it.
    base: Path | None = None
    #: Further command line arguments, and further environment variables.
    arguments: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    #: Run on the CPU. Switch it off on a machine whose torch has a GPU.
    cpu: bool = True
    #: Seconds to wait until it answers.
    timeout: float = 180.0

    def __post_init__(self) -> None:
        super().__init__("")
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: Path | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            EnvironmentFailure: there is no ComfyUI; the message says how to get one.
            ServerError: it ended or did not answer in time; the message holds the end of its log.
        """
        if self._process is not None:
            raise ServerError("this server is already running")
        environment = self.environment or find()
        atexit.register(self.stop)
        try:
            if self.base is None:
                self._temporary = self.base = Path(tempfile.mkdtemp(prefix="safety-directions-")).resolve()
            self._install_packs()
            port = _free_port()
            self.url = f"http://127.0.0.1:{port}"
            with open(self.log, "wb") as log:
                self._process = subprocess.Popen(
                    [*_DIES_WITH_US, *self._command(environment, port)],
                    cwd=environment.comfyui, env=self._variables(environment), stdin=subprocess.DEVNULL,
                    stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill it and everything it started, and remove its temporary base directory; may be called twice."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            # Nothing in a temporary directory needs an orderly end, and ComfyUI has none: it dies of SIGTERM too.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.name == "nt":
                    process.kill()
                else:
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = self.base = None

    @property
    def log(self) -> Path:
        """The file that holds everything ComfyUI prints."""
        if self.base is None:
            raise ServerError("there is no log: this server is not running")
        return self.base / "comfyui.log"

    @property
    def pid(self) -> int:
        """The id of its process, and of its process group."""
        if self._process is None:
            raise ServerError("this server is not running")
        return self._process.pid

    def log_text(self, lines: int | None = None) -> str:
        """The log without its colours, or its last lines."""
        text = re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(encoding="utf-8", errors="replace"))
        return "\n".join(text.splitlines()[-(lines or 0) :])

    def _command(self, environment: Environment, port: int) -> list[str]:
        assert self.base is not None
        command = [str(environment.python), "main.py", "--listen", "127.0.0.1", "--port", str(port),
                   "--base-directory", str(self.base), "--disable-auto-launch"]  # fmt: skip
        if self.cpu:
            command += ["--cpu"]
        known = (environment.comfyui / "comfy" / "cli_args.py").read_text(encoding="utf-8")
        for flags in (
            # By default the database lies in the ComfyUI tree, locked by the first server that runs there.
            ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"],
            ["--disable-api-nodes"],  # they want the internet
            # The base directory holds these packs alone, but a user's extra_model_paths.yaml may name more.
            ["--whitelist-custom-nodes", *(self.packs or ["none"]), "--disable-all-custom-nodes"],
        ):
            if f'"{flags[0]}"' in known:
                command += flags
        return [*command, *self.arguments]

    def _variables(self, environment: Environment) -> dict[str, str]:
        # PYTHONPATH would let the pack import what a user's ComfyUI does not give it.
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
        if environment.pythonpath:
            variables["PYTHONPATH"] = os.pathsep.join(map(str, environment.pythonpath))
        return {**variables, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **self.variables}

    def _install_packs(self) -> None:
        assert self.base is not None
        for folder in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, source in self.packs.items():
            target = self.base / "custom_nodes" / name
            if Path(source) == target:  # an installer put it there
                continue
            if target.is_symlink():  # from an earlier run in a base directory that is kept
                target.unlink()
            try:
                target.symlink_to(Path(source).resolve(), target_is_directory=True)
            except (OSError, NotImplementedError):  # Windows without the right to make links
                shutil.copytree(source, target, ignore=_NOT_THE_PACK, dirs_exist_ok=True)

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self.timeout
        while True:
            with contextlib.suppress(ServerError):
                stats = json.loads(self._request("/system_stats", timeout=5))
                if str(self.base) in stats["system"]["argv"]:  # and not another ComfyUI that was quicker to the port
                    return
            if self._process.poll() is not None:
                raise self._failure(f"ComfyUI ended with exit status {self._process.returncode} before it answered")
            if time.monotonic() > deadline:
                raise self._failure(f"ComfyUI did not answer within {self.timeout:.0f} s")
            time.sleep(0.2)

    def _failure(self, what: str) -> ServerError:
        error = super()._failure(what)
        if self._process is None:
            return error
        return ServerError(f"{error}\n--- the end of {self.log}:\n{self.log_text(40)}")


#: Runs a command that the kernel kills when its parent dies. A program of its own rather than a `preexec_fn`, which
#: may deadlock in a process with threads, as one that has imported torch. (The parent is the *thread* that starts it.)
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    sys.exit("the process that started ComfyUI has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_DIES_WITH_US = [sys.executable, "-c", _GUARD, str(os.getpid())] if sys.platform == "linux" else []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
