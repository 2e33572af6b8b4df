"""Host mode: with SAFETY_DIRECTION_POLICY set, every queued graph is routed through the steering, whatever its nodes are."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple

from ..directions.graph import Graph, Link, bypassed, is_link, links, steering_nodes
from ..directions.steer import MODES

VARIABLE = "SAFETY_DIRECTION_POLICY"
PREFIX = "safety-direction"
_log = logging.getLogger("safety_directions")


class PolicyError(ValueError):
    """A policy that can't be followed; the message says what is wrong and where."""


class Sockets(NamedTuple):
    """A node class's socket types."""

    inputs: Mapping[str, str]
    outputs: list[str]


@dataclass(frozen=True)
class Policy:
    """What a host asks for; the fields are those of the nodes.

    Attributes:
        direction: a name in the library or in models/safety_directions.
        log: a file that every flagged prompt and every routed graph is written to, or None.
    """

    direction: str
    method: str = "auto"
    mode: str = "gate"
    alpha: float = 5.0
    budget: float = 0.01
    categories: str = ""
    on_flag: str = "steer"
    log: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As the CLIP and Guard nodes take them."""
        return {"mode": self.mode, "alpha": self.alpha, "budget": self.budget, "categories": self.categories}


def read_policy(path: str | Path) -> Policy:
    """Read and check a policy file.

    Raises:
        PolicyError: no such file, not JSON, an unknown or missing name, or a value that doesn't fit.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise PolicyError(f"{path} is not a JSON object")
    known = {field.name: field for field in fields(Policy)}
    unknown = sorted(set(content) - set(known))
    if unknown or "direction" not in content:
        raise PolicyError(
            f"{path}: {'unknown: ' + ', '.join(unknown) if unknown else 'it names no direction'}; known: {', '.join(known)}"
        )
    numbers = ("alpha", "budget")
    for name, value in content.items():
        right = (
            isinstance(value, (int, float)) and not isinstance(value, bool)
            if name in numbers
            else isinstance(value, str)
        )
        if not right:
            raise PolicyError(f"{path}: {name} is {value!r}, not a {'number' if name in numbers else 'text'}")
    policy = Policy(**content)
    if policy.mode not in MODES or policy.on_flag not in ("steer", "refuse"):
        raise PolicyError(f"{path}: mode is one of {', '.join(MODES)} and on_flag is steer or refuse")
    if not (-20 <= policy.alpha <= 20 and 0 <= policy.budget <= 1):
        raise PolicyError(f"{path}: alpha is -20 to 20 benign spreads and budget a share from 0 to 1")
    return policy


def route(graph: Graph, sockets: Callable[[str], Sockets | None], policy: Policy) -> Graph:
    """The graph with every CLIP and every MODEL going through the steering; the given one is left as it is.

    A CLIP steers whatever is encoded with it; the Guard on the MODEL checks what reaches the sampler, steers what
    isn't, and gives negative prompts their force back. A node that only makes one CLIP or MODEL from another, such as
    a LoRA loader, gets them as they are: what comes out of it is routed. The client's own steering nodes are passed by:
    they could be set to do nothing, or bring an alignment to an encoder that reads nothing.

    Args:
        sockets: the socket types of a node class, None for an unknown one.
    """
    graph = {node_id: {**node, "inputs": _inputs(node)} for node_id, node in graph.items()}
    graph = bypassed(graph, steering_nodes(graph))
    routed: Graph = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in graph.items()}
    load = f"{PREFIX}:load"
    inserted: Graph = {load: _node("SafetyDirectionLoad", direction=policy.direction)}
    for consumer, name, link, kind in list(_wires(graph, sockets)):
        source = [link[0], link[1]]
        if kind == "CLIP":
            align, steered = (f"{PREFIX}:{job}:{link[0]}:{link[1]}" for job in ("align", "clip"))
            inserted[align] = _node("SafetyDirectionAlign", direction=[load, 0], clip=source, method=policy.method)
            # Steered even where prompts are refused: this CLIP may encode a negative prompt. The Guard refuses.
            inserted[steered] = _node(
                "SafetyDirectionCLIP", clip=source, aligned=[align, 0], on_flag="steer", **policy.settings
            )
        else:
            steered = f"{PREFIX}:guard:{link[0]}:{link[1]}"
            inserted[steered] = _node(
                "SafetyDirectionGuard",
                model=source,
                side="positive",
                on_flag=policy.on_flag,
                strict=True,
                **policy.settings,
            )
        routed[consumer]["inputs"][name] = [steered, 0]
    routed |= inserted
    guards = {node_id for node_id in inserted if node_id.startswith(f"{PREFIX}:guard:")}
    # For conditioning that no CLIP of this graph made; not where it would close a circle.
    fallback = next(
        (n for n in inserted if n.startswith(f"{PREFIX}:align:") and not guards & _upstream(routed, n)), None
    )
    for guard in guards if fallback else ():
        routed[guard]["inputs"]["aligned"] = [fallback, 0]
    return routed


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _inputs(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node's inputs as ComfyUI will have them: it takes a value out of `{"__value__": value}`, and runs that as a
    link if it is one."""
    inputs = dict(node.get("inputs") or {})
    for name, value in inputs.items():
        while isinstance(value, dict) and "__value__" in value and is_link(_innermost(value)):
            value = inputs[name] = value["__value__"]
    return inputs


def _innermost(value: Any) -> Any:
    while isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    return value


def _wires(graph: Graph, sockets: Callable[[str], Sockets | None]) -> Iterator[tuple[str, str, Link, str]]:
    """(consumer, its input, source, "CLIP" or "MODEL") of every link to route, by the type at either end."""
    for consumer, node in graph.items():
        here = sockets(str(node.get("class_type")))
        if here and here.outputs and all(kind in ("CLIP", "MODEL") for kind in here.outputs):
            continue
        for name, link in links(node):
            there = sockets(str(graph.get(link[0], {}).get("class_type")))
            # As Python and so ComfyUI counts: -1 is the last.
            given = there.outputs[link[1]] if there and -len(there.outputs) <= link[1] < len(there.outputs) else ""
            # What the source says it gives; where it doesn't say, what the consumer takes.
            for kind in _kinds(given) or _kinds(here.inputs.get(name, "") if here else ""):
                yield consumer, name, link, kind


def _kinds(socket: str) -> list[str]:
    return [kind for kind in ("CLIP", "MODEL") if kind in (part.strip() for part in socket.split(","))][:1]


def _upstream(graph: Graph, node_id: str) -> set[str]:
    found: set[str] = set()
    waiting = [node_id]
    while waiting:
        current = waiting.pop()
        if current not in found and current in graph:
            found.add(current)
            waiting += [link[0] for _, link in links(graph[current])]
    return found


def _sockets(class_type: str) -> Sockets | None:
    """From ComfyUI's own list of node classes."""
    import nodes  # ComfyUI's, which exists only inside it

    node = nodes.NODE_CLASS_MAPPINGS.get(class_type)  # type: ignore[attr-defined]
    if node is None:
        return None
    inputs: dict[str, str] = {}
    for section in ("required", "optional"):
        for name, spec in (node.INPUT_TYPES().get(section) or {}).items():
            inputs[name] = spec[0] if isinstance(spec[0], str) else "COMBO"
    return Sockets(inputs, [kind if isinstance(kind, str) else "COMBO" for kind in node.RETURN_TYPES])


class Host:
    """ComfyUI's on-prompt handler for one policy file; a policy that can't be followed refuses every prompt."""

    variable = VARIABLE

    def __init__(self, path: str, check_direction: Callable[[str], Any]) -> None:
        self.fault: str | None = None
        try:
            self.policy = read_policy(path)
            check_direction(self.policy.direction)
            if self.policy.log:
                handler = logging.FileHandler(self.policy.log, encoding="utf-8")
                handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
                _log.addHandler(handler)
                _log.setLevel(logging.INFO)
        except Exception as error:
            self.fault = f"{VARIABLE}: {error}"
            logging.error("safety-directions: every prompt is refused. %s", self.fault)
        else:
            _log.info("host mode: %s", asdict(self.policy))

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        # ComfyUI runs the graph as it came when a handler raises, so this never does.
        try:
            graph = request.get("prompt")
            if not isinstance(graph, dict):
                return request
            if self.fault:
                return {**request, "prompt": self._refusal(self.fault)}
            routed = route(self._replaced(graph), _sockets, self.policy)
        except Exception as error:
            logging.exception("safety-directions: this graph can't be routed")
            return {**request, "prompt": self._refusal(f"this graph can't be routed through the steering: {error!r}")}
        jobs = [node_id.split(":")[1] for node_id in routed if node_id.startswith(f"{PREFIX}:")]
        _log.info(
            "prompt from client %s: %d CLIP and %d MODEL outputs routed",
            request.get("client_id"),
            jobs.count("clip"),
            jobs.count("guard"),
        )
        return {**request, "prompt": routed}

    @staticmethod
    def _refusal(message: str) -> Graph:
        return {f"{PREFIX}:refusal": _node("SafetyDirectionRefusal", message=message)}

    @staticmethod
    def _replaced(graph: Graph) -> Graph:
        """ComfyUI renames replaced node classes after its handlers; here their sockets are needed before."""
        from server import PromptServer

        manager = getattr(PromptServer.instance, "node_replace_manager", None)
        if manager is not None:
            manager.apply_replacements(graph)
        return graph


def register(check_direction: Callable[[str], Any]) -> None:
    """Start host mode if the environment asks for it; once, however many copies of the pack there are."""
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    from server import PromptServer

    if any(
        getattr(handler, "variable", None) == VARIABLE
        for handler in getattr(PromptServer.instance, "on_prompt_handlers", ())
    ):
        return
    PromptServer.instance.add_on_prompt_handler(Host(path, check_direction))
