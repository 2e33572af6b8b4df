"""What a host asks the server: whether it is guarded and ready, and counts of what happened."""

from __future__ import annotations

import hmac
from typing import Any

from ...directions.graph import HEALTH
from .encoding import Encoding
from .server import Host


def add_routes(server: Any, host: Host, encoding: Encoding) -> None:
    """`/safety_directions/health` for everybody, and `/safety_directions/counts` for who has the policy's `counts_token`."""
    from aiohttp import web

    @server.routes.get(HEALTH)
    async def health(request: Any) -> Any:
        if host.fault:
            return web.json_response({"ready": False, "why": "the policy can't be followed"}, status=503)
        if not encoding.aligned:
            return web.json_response({"ready": False, "why": "no text encoder is aligned yet"}, status=503)
        return web.json_response({"ready": True, "on_flag": host.policy.on_flag})

    @server.routes.get("/safety_directions/counts")
    async def counts(request: Any) -> Any:
        token = None if host.fault else host.policy.counts_token
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token or not hmac.compare_digest(given.encode(), token.encode()):
            return web.Response(status=403, text="give the policy's counts_token: Authorization: Bearer TOKEN\n")
        return web.Response(text=host.counts.as_lines())
