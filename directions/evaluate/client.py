"""A ComfyUI server, and an API-format workflow whose steering, prompt and seed can be set. Standard library only."""

from __future__ import annotations

import copy
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Callable, Mapping

from ..graph import HEALTH, HOST_MODE, STEERING, Graph, bypassed, steering_nodes, without

PLACEHOLDER = "{prompt}"

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

# ComfyUI runs on this machine or in this network; a proxy from the environment would only be in the way.
_http = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerLost(RuntimeError):
    """A server can't be reached, or no longer knows a prompt that it had accepted."""


class GraphError(ValueError):
    """ComfyUI refused a graph or failed in it; says which node and why."""


class Workflow:
    """A workflow in API format, with a placeholder for the prompt, a seed, and where it is `steered` a steering node.

    Raises:
        ValueError: it isn't one; the message says what is missing and how to get it.
    """

    def __init__(self, graph: Graph, name: str = "workflow", steered: bool = True) -> None:
        if not isinstance(graph, dict) or not all(
            isinstance(node, dict) and "class_type" in node for node in graph.values()
        ):
            how = "it is one saved for the web page" if isinstance(graph, dict) and "nodes" in graph else "it is none"
            raise ValueError(
                f"{name}: a workflow in API format is needed and {how}: in ComfyUI choose Workflow > Export (API)"
            )
        self.name = name
        saves = {key for key, node in graph.items() if node["class_type"] == "SaveImage"}
        # The pictures end up in our own folder: the server's output folder need not fill up with them.
        self._graph: Graph = {
            key: {"class_type": "PreviewImage", "inputs": {"images": node["inputs"]["images"]}}
            if key in saves
            else copy.deepcopy(node)
            for key, node in graph.items()
            if key in saves or not saves or node["class_type"] != "PreviewImage"
        }
        inputs = [
            (node, key, value) for node in self._graph for key, value in self._graph[node].get("inputs", {}).items()
        ]
        self._texts = [(node, key) for node, key, value in inputs if isinstance(value, str) and PLACEHOLDER in value]
        self._seeds = [
            (node, key) for node, key, value in inputs if key in ("seed", "noise_seed") and type(value) is int
        ]
        self.steering = steering_nodes(self._graph)
        if not self._texts:
            raise ValueError(f"{name}: no text in it says {PLACEHOLDER}, where the prompts go")
        if not self._seeds:
            raise ValueError(
                f"{name}: no node has a number called seed or noise_seed, so pictures couldn't be compared"
            )
        if steered and not self.steering:
            raise ValueError(f"{name}: none of the steering nodes is in it ({', '.join(STEERING)})")

    @classmethod
    def load(cls, path: str | Path, steered: bool = True) -> Workflow:
        """From a JSON file."""
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")), Path(path).name, steered)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{Path(path).name}: not JSON: {error}") from None

    @property
    def content(self) -> Graph:
        """What it is, for telling whether it changed."""
        return self._graph

    def graph(
        self, prompt: str, seed: int, steering: Mapping[str, Any] | None, changes: Mapping[str, Any] = {}
    ) -> Graph:
        """The graph that draws `prompt`.

        Args:
            steering: inputs of the steering nodes, such as alpha and mode; None routes round those nodes.
            changes: other inputs, by "<node id>.<input>".

        Raises:
            ValueError: there is no such node or input.
        """
        graph = copy.deepcopy(self._graph)
        for node, key in self._texts:
            graph[node]["inputs"][key] = graph[node]["inputs"][key].replace(PLACEHOLDER, prompt)
        for node, key in self._seeds:
            graph[node]["inputs"][key] = seed
        for place, value in changes.items():
            node, _, name = place.partition(".")
            self._set(graph, node, name, value)
        for node in self.steering:
            for name, value in (steering or {}).items():
                self._set(graph, node, name, value)
        if steering is None:
            graph = without(bypassed(graph, self.steering), self.steering)
        return graph

    def _set(self, graph: Graph, node: str, name: str, value: Any) -> None:
        if node not in graph:
            raise ValueError(f"{self.name}: there is no node {node!r}; there are {', '.join(graph)}")
        inputs = graph[node]["inputs"]
        if name not in inputs:
            raise ValueError(
                f"{self.name}: node {node} ({graph[node]['class_type']}) has no input {name!r}; it has {', '.join(inputs)}"
            )
        inputs[name] = value


class Remote:
    """A running ComfyUI, at an address such as `http://127.0.0.1:8188`.

    Every method raises ServerLost when it can't be reached.
    """

    def __init__(self, address: str) -> None:
        self.address = (address if "://" in address else f"http://{address}").rstrip("/")

    def version(self) -> str:
        """ComfyUI's version; a way to ask whether it is there."""
        return str(self.read("/system_stats").get("system", {}).get("comfyui_version", "unknown"))

    def health(self) -> dict[str, Any] | None:
        """What host mode says of itself; None where the server isn't in host mode."""
        try:
            return json.loads(self._request(HEALTH))
        except ServerLost as error:
            answer = error.__cause__
            if isinstance(answer, urllib.error.HTTPError) and answer.code == 503:
                return json.loads(answer.read())
            if isinstance(answer, urllib.error.HTTPError) and answer.code == 404:
                return None
            raise

    def submit(self, graph: Graph) -> str:
        """Queue a graph; gives its id.

        Raises:
            GraphError: ComfyUI finds it invalid.
        """
        try:
            answer = self.read("/prompt", {"prompt": graph})
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise ServerLost(f"{self.address}: {error}") from error
            answer = json.loads(error.read())
        if answer.get("node_errors") or "prompt_id" not in answer:
            raise GraphError(_refusal(answer, graph))
        return answer["prompt_id"]

    def wait(self, prompt_id: str, stopped: Callable[[], bool] = lambda: False) -> list[dict[str, str]] | None:
        """References to the pictures that a queued graph drew, once it has; None if `stopped` says so before.

        Raises:
            GraphError: a node failed, or what was drawn isn't pictures of one node.
        """
        entry = self.finished(prompt_id, stopped)
        return None if entry is None else _pictures(entry)

    def finished(self, prompt_id: str, stopped: Callable[[], bool] = lambda: False) -> dict[str, Any] | None:
        """What ComfyUI's history says of a queued graph, once it has run; None if `stopped`, asked again and again, says so
        before. See `raise_failed`.
        """
        pause, asked = 0.005, 0
        while not stopped():
            entry = self.read(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return entry
            asked += 1
            if asked % 50 == 0:
                queue = self.read("/queue")
                known = {item[1] for item in (*queue["queue_running"], *queue["queue_pending"])}
                if prompt_id not in known and prompt_id not in self.read(f"/history/{prompt_id}"):
                    raise ServerLost(
                        f"{self.address} no longer knows prompt {prompt_id} (restarted, or its queue was cleared)"
                    )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)  # several prompts are queued ahead, so the server doesn't wait for us
        return None

    def picture(self, reference: Mapping[str, str]) -> bytes:
        """The file that a reference names."""
        return self._request(
            "/view?" + urllib.parse.urlencode({key: reference[key] for key in ("filename", "subfolder", "type")})
        )

    def cancel(self, prompt_ids: list[str]) -> None:
        """Take graphs from the queue, and stop the one that runs if it is among them."""
        self._request("/queue", {"delete": prompt_ids})
        for prompt_id in prompt_ids:
            self._request("/interrupt", {"prompt_id": prompt_id})

    def read(self, path: str, content: Any = None) -> Any:
        """What it answers, as JSON, to a path and to `content` if there is any."""
        try:
            return json.loads(self._request(path, content))
        except json.JSONDecodeError:
            raise ServerLost(f"{self.address}: what answers there is no ComfyUI") from None

    def _request(self, path: str, content: Any = None) -> bytes:
        body = None if content is None else json.dumps(content).encode()
        try:
            request = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
            with _http.open(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            if path == "/prompt":
                raise
            raise ServerLost(f"{self.address}{path}: {error}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerLost(f"no ComfyUI answers at {self.address}: {getattr(error, 'reason', error)}") from error


def _refusal(answer: Mapping[str, Any], graph: Graph) -> str:
    faults = [
        f"node {key} ({node.get('class_type') or graph.get(key, {}).get('class_type')}): "
        + "; ".join(f"{fault['message']}: {fault['details']}".rstrip(": ") for fault in node["errors"])
        for key, node in (answer.get("node_errors") or {}).items()
    ]
    error = answer.get("error") or {}
    if not faults:
        faults = [
            f"{error.get('message', 'no reason given')} {error.get('details') or ''}".strip()
            if isinstance(error, dict)
            else str(error)
        ]
    return "ComfyUI refuses the workflow: " + "\n".join(faults)


def notes_of_host_mode(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How host mode steered what a graph sampled: score, flagged, why, mode, ...; nothing where it only reports."""
    notes = (entry["prompt"][3].get("extra_pnginfo") or {}).get("safety_direction") or ()
    return [note for note in notes if note["node"] == HOST_MODE]


def raise_failed(entry: Mapping[str, Any]) -> None:
    """Raise GraphError where a node of a graph that has run failed, or somebody interrupted it."""
    status = entry.get("status") or {}
    if status.get("status_str") == "error":
        for kind, data in status.get("messages", ()):
            if kind == "execution_error":
                message = str(data.get("exception_message", "")).strip()
                raise GraphError(
                    f"node {data['node_id']} ({data['node_type']}) failed in ComfyUI: {data['exception_type']}: {message}"
                )
        raise GraphError("somebody interrupted the workflow on the server")


def _pictures(entry: Mapping[str, Any]) -> list[dict[str, str]]:
    if notes_of_host_mode(entry):
        raise GraphError(
            "this server steers every graph (SAFETY_DIRECTION_POLICY is set there), so there would be nothing to compare with"
        )
    raise_failed(entry)
    shown = {key: output["images"] for key, output in entry["outputs"].items() if output.get("images")}
    if len(shown) != 1:
        where = f"nodes {', '.join(sorted(shown))} do" if shown else "none does"
        raise GraphError(f"exactly one node of the workflow should save or preview pictures; {where}")
    pictures = next(iter(shown.values()))
    if others := [
        picture["filename"] for picture in pictures if Path(picture["filename"]).suffix.lower() not in PICTURES
    ]:
        raise GraphError(f"the workflow saves {others[0]}, which is no picture: save a video's frames with Save Image")
    return pictures
