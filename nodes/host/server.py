"""ComfyUI's on-prompt handler, and the policy in force."""

from __future__ import annotations

import logging
import uuid
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Mapping, MutableMapping

from comfy_execution.utils import get_executing_context
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...directions.graph import is_link
from ...directions.joining import joined_fingerprint
from ...directions.words import fingerprint, harmless_prompts, names_of
from .. import settings
from ..encoders.flag import LOG
from . import VARIABLE
from .log import Counts, opened, say, texts
from .policy import Policy, read_policy

PREFIX = "safety-direction"
NUMBER = "safety_direction_policy"
"""An input that says how often the policy has changed, and the client's budget."""

MOST = 10_000
"""Prompts whose policy is known, before those that have run are forgotten."""


HEADERS: ContextVar[Mapping[str, str]] = ContextVar("headers")
"""Of the request that queues a prompt."""


class HostFault(ValueError):
    """The policy can't be followed; nothing is encoded or sampled."""


@dataclass(frozen=True)
class Order:
    """A policy, with what it names loaded.

    Attributes:
        fingerprint: of the direction, with what was typed beside it.
    """

    policy: Policy
    direction: Any
    fingerprint: str
    settings: Any
    handler: logging.Handler | None
    judge: Any


class Host:
    """Host mode by one policy file. One that can't be followed refuses every prompt, until there has been one that can."""

    variable = VARIABLE

    def __init__(self, path: str, load_direction: Callable[[str], Any], load_judge: Callable[[str], Any]) -> None:
        self.path = Path(path)
        self.fault: str | None = None
        self.counts = Counts()
        self._load, self._load_judge = load_direction, load_judge
        self._seen, self._changes = self._stamp(), 0
        self._order: Order | None = None
        self._queued: dict[str, Order] = {}  # what each prompt runs under, by its id
        # States let into a sampler, by which settings: what was only reported doesn't pass where prompts are steered.
        self.passed: MutableMapping[Tensor, Any] = WeakIdKeyDictionary()
        LOG.addHandler(self.counts)
        LOG.setLevel(logging.INFO)
        self._read()

    @property
    def policy(self) -> Policy:
        return self._now().policy

    @property
    def direction(self) -> Any:
        """The policy's, loaded."""
        return self._now().direction

    @property
    def fingerprint(self) -> str:
        """What alignments that steer by this policy are of."""
        return self._now().fingerprint

    @property
    def settings(self) -> Any:
        """How it steers; where it only reports, so that no bit changes."""
        return self._now().settings

    @property
    def judge(self) -> Any:
        """Of pictures; None where the policy names none."""
        return self._now().judge

    @property
    def reports(self) -> bool:
        """Whether nothing is steered or refused."""
        return self.policy.on_flag == "report"

    def refresh(self) -> bool:
        """Read the policy again where its file has changed; whether another is in force now."""
        stamp, before = self._stamp(), self._order
        if stamp == self._seen:
            return False
        self._seen = stamp
        self._read()
        return self._order is not before

    def _stamp(self) -> tuple[int, int] | None:
        try:
            facts = self.path.stat()
        except OSError:
            return None
        return facts.st_mtime_ns, facts.st_size

    def _read(self) -> None:
        try:
            policy = read_policy(self.path)
            steering = settings.steering_settings(**policy.settings)
            if policy.on_flag == "report":
                steering = replace(steering, mode="gate", alpha=0.0)
            direction = self._load(policy.direction)
            known = direction.fingerprint
            if policy.also:
                known = joined_fingerprint(known, fingerprint(policy.also, harmless_prompts(direction)))
                if steering.categories:
                    steering = replace(steering, categories=(*steering.categories, *names_of(policy.also)))
            judge = self._load_judge(policy.judge) if policy.judge else None
            handler = opened(policy.log) if policy.log else None
        except Exception as error:
            fault = f"{VARIABLE}: {error}"
            if self._order is None:
                self.fault = fault
                logging.error("safety-directions: every prompt is refused. %s", fault)
            else:
                logging.error("safety-directions: the last sound policy stays in force. %s", fault)
                say(f"a broken policy is left alone: {fault}", event="policy", action="kept the last", fault=fault)
            return
        before, self.fault = self._order, None
        if before is not None and before.handler is not None:
            LOG.removeHandler(before.handler)
            before.handler.close()
        if handler is not None:
            LOG.addHandler(handler)
        self._order = Order(policy, direction, known, steering, handler, judge)
        told = {name: value for name, value in asdict(policy).items() if name != "counts_token"}  # a secret
        say(f"host mode: {told}", event="policy", action="read", **told)

    def _now(self) -> Order:
        """What the prompt that is running was queued under; outside of one what is in force."""
        context = get_executing_context()
        order = self._queued.get(context.prompt_id, self._order) if context else self._order
        if order is None:
            raise HostFault(f"Safety Direction host mode refuses every prompt. {self.fault}")
        return order

    def _budget(self) -> float:
        """Of the client that queues a prompt."""
        policy = self.policy
        return policy.budgets.get(HEADERS.get({}).get(policy.client_header or "", ""), policy.budget)

    def _forget(self) -> None:
        """Prompts that have run."""
        from server import PromptServer  # ComfyUI's, which exists only inside it

        waiting = {item[1] for items in PromptServer.instance.prompt_queue.get_current_queue() for item in items}
        self._queued = {prompt_id: order for prompt_id, order in self._queued.items() if prompt_id in waiting}

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Log a queued graph, or refuse it at once; encoding and sampling would refuse it, too."""
        changed = self.refresh()
        self._changes += changed
        if changed or len(self._queued) > MOST:
            self._forget()
        if self._order is None:
            refusal = {"class_type": "SafetyDirectionRefusal", "inputs": {"message": self.fault}}
            return {**request, "prompt": {f"{PREFIX}:refusal": refusal}}
        client, graph = str(request.get("client_id"))[:100], request.get("prompt")
        if not isinstance(graph, dict):
            return request  # ComfyUI says what is wrong with it
        told = texts(graph, self.policy.log_prompts)
        say(f"prompt from client {client}", event="queued", client=client, **told)
        prompt_id = request.get("prompt_id") or str(uuid.uuid4())
        budget = self._budget()
        self._queued[prompt_id] = with_budget(self._order, budget)
        if self._changes or self.policy.budgets:
            graph = anew(graph, f"{self._changes} {budget}")
        return {**request, "prompt_id": prompt_id, "prompt": graph}


def with_budget(order: Order, budget: float) -> Order:
    """The same, for a client of another budget."""
    return order if budget == order.settings.budget else replace(order, settings=replace(order.settings, budget=budget))


def anew(graph: dict[str, Any], number: str) -> dict[str, Any]:
    """A graph that ComfyUI runs from its loaders on, where it kept outputs of another policy's time or another budget's.

    The nodes that no other feeds get one more input, which none of them reads.
    """

    def fed(node: Any) -> bool:
        inputs = node.get("inputs") if isinstance(node, dict) else None
        return not isinstance(inputs, dict) or any(map(is_link, inputs.values()))

    return {
        name: node if fed(node) else {**node, "inputs": {**node["inputs"], NUMBER: number}} for name, node in graph.items()
    }
