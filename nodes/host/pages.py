"""What a host asks the server: whether it is guarded and ready, counts of what happened, and both on a page."""

from __future__ import annotations

import hmac
from dataclasses import asdict
from html import escape
from typing import Any, Iterable

from ...directions.graph import HEALTH
from .encoding import Encoding
from .server import HEADERS, Host

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Safety Directions</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}}
td,th{{text-align:left;padding:.2rem 1.5rem .2rem 0}}</style>
<h1>Safety Directions, host mode</h1><p>{state}</p>
<h2>Policy</h2><table>{policy}</table>
<h2>Since the server started</h2><table><tr><th>event<th>what was done<th>how often</tr>{counts}</table></html>"""


def state_of(host: Host, encoding: Encoding) -> str | None:
    """Why the server isn't ready, or None."""
    if host.fault:
        return "the policy can't be followed"
    return None if encoding.aligned else "no text encoder is aligned yet"


def may_look(host: Host, authorization: str) -> bool:
    """Whether an Authorization header gives the policy's counts_token: as a bearer token, or as browsers do, as a password."""
    from aiohttp import BasicAuth

    token = None if host.fault else host.policy.counts_token
    try:
        given = BasicAuth.decode(authorization, encoding="utf-8").password
    except ValueError:  # not as browsers do
        given = authorization.removeprefix("Bearer ")
    return bool(token) and hmac.compare_digest(given.encode(), str(token).encode())


def page(host: Host, encoding: Encoding) -> str:
    """The policy in force and the counts, as HTML."""
    why = state_of(host, encoding)
    told = [(name, value) for name, value in asdict(host.policy).items() if name != "counts_token"]
    counts = [(event, action, number) for (event, action), number in sorted(host.counts.of.items())]
    return PAGE.format(state=escape(f"Not ready: {why}." if why else "Ready."), policy=_rows(told), counts=_rows(counts))


def _rows(rows: Iterable[Iterable[Any]]) -> str:
    return "".join(f"<tr>{''.join(f'<td>{escape(str(cell))}' for cell in row)}</tr>" for row in rows)


def hand_on_headers(server: Any) -> None:
    """Let the on-prompt handler see the headers of the request that queues a prompt, which ComfyUI keeps from it."""
    from aiohttp import web

    @web.middleware
    async def keep(request: Any, handler: Any) -> Any:
        HEADERS.set(request.headers)
        return await handler(request)

    server.app.middlewares.append(keep)


def add_routes(server: Any, host: Host, encoding: Encoding) -> None:
    """`/safety_directions/health` for everybody; `/safety_directions/counts` and `/safety_directions/summary` for who has the
    policy's `counts_token`."""
    from aiohttp import web

    @server.routes.get(HEALTH)
    async def health(request: Any) -> Any:
        why = state_of(host, encoding)
        if why:
            return web.json_response({"ready": False, "why": why}, status=503)
        return web.json_response({"ready": True, "on_flag": host.policy.on_flag})

    @server.routes.get("/safety_directions/counts")
    async def counts(request: Any) -> Any:
        if not may_look(host, request.headers.get("Authorization", "")):
            return web.Response(status=403, text="give the policy's counts_token: Authorization: Bearer TOKEN\n")
        return web.Response(text=host.counts.as_lines())

    @server.routes.get("/safety_directions/summary")
    async def summary(request: Any) -> Any:
        if not may_look(host, request.headers.get("Authorization", "")):
            ask = {"WWW-Authenticate": 'Basic realm="Safety Directions: any name, and the counts_token of the policy"'}
            return web.Response(status=401, headers=ask, text="the password is the policy's counts_token\n")
        return web.Response(text=page(host, encoding), content_type="text/html")
