"""ComfyUI's on-prompt handler, and the policy in force."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any, Callable

from .. import settings
from . import VARIABLE
from .policy import Policy, read_policy

PREFIX = "safety-direction"
_log = logging.getLogger("safety_directions")


class HostFault(ValueError):
    """The policy can't be followed; nothing is encoded or sampled."""


class Host:
    """Host mode by one policy file; a policy that can't be followed refuses every prompt."""

    variable = VARIABLE

    def __init__(self, path: str, load_direction: Callable[[str], Any]) -> None:
        self.fault: str | None = None
        try:
            self._policy = read_policy(path)
            self._direction = load_direction(self._policy.direction)
            self._settings = settings.steering_settings(**self._policy.settings)
            if self._policy.log:
                handler = logging.FileHandler(self._policy.log, encoding="utf-8")
                handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
                _log.addHandler(handler)
                _log.setLevel(logging.INFO)
        except Exception as error:
            self.fault = f"{VARIABLE}: {error}"
            logging.error("safety-directions: every prompt is refused. %s", self.fault)
        else:
            _log.info("host mode: %s", asdict(self._policy))

    @property
    def policy(self) -> Policy:
        self._check()
        return self._policy

    @property
    def direction(self) -> Any:
        """The policy's, loaded."""
        self._check()
        return self._direction

    @property
    def settings(self) -> Any:
        """How it steers."""
        self._check()
        return self._settings

    def _check(self) -> None:
        if self.fault:
            raise HostFault(f"Safety Direction host mode refuses every prompt. {self.fault}")

    def __call__(self, request: dict[str, Any]) -> dict[str, Any]:
        """Log a queued graph, or refuse it at once; encoding and sampling would refuse it, too."""
        if self.fault:
            refusal = {"class_type": "SafetyDirectionRefusal", "inputs": {"message": self.fault}}
            return {**request, "prompt": {f"{PREFIX}:refusal": refusal}}
        _log.info("prompt from client %s", request.get("client_id"))
        return request
