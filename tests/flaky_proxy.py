"""A proxy before an S3 server that makes it as bad as a store can be: errors, slow replies, replies that never come.

    python -m tests.flaky_proxy --port 9000 --to http://127.0.0.1:8333 --share 0.2

A fifth of the requests go wrong, in equal parts: refused with 503 SlowDown; cut off before they reach the server; cut
off after the server has done them, so that the client cannot know; answered with 500; answered late.
"""

from __future__ import annotations

import asyncio
import random

import click
from aiohttp import ClientConnectionError, ClientSession, TCPConnector, web
from yarl import URL

_ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
_ENDS_HERE = {"transfer-encoding", "connection", "content-encoding", "keep-alive"}
SLOW_SECONDS = 1.5


class FlakyProxy:
    """Hands requests on, most of the time.

    Args:
        to: the server's URL.
        share: of the requests, that go wrong.
    """

    def __init__(self, to: str, share: float, seed: int):
        self._to = to
        self._share = share
        self._random = random.Random(seed)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        fate = self._random.choice(["slowdown", "lost", "done but lost", "error", "late"])
        if self._random.random() >= self._share:
            fate = "well"
        if fate == "slowdown":
            return web.Response(status=503, text=_ERROR.format(code="SlowDown"), content_type="application/xml")
        if fate == "error":
            return web.Response(status=500, text=_ERROR.format(code="InternalError"), content_type="application/xml")
        body = await request.read()
        if fate == "lost":
            return self._cut(request)
        if fate == "late":
            await asyncio.sleep(self._random.random() * SLOW_SECONDS)
        try:
            answer = await self._forward(request, body)
        except (ClientConnectionError, asyncio.TimeoutError):  # The server is dead.
            return self._cut(request)
        return self._cut(request) if fate == "done but lost" else answer

    async def _forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        # Signatures cover the address as the client wrote it.
        url = URL(self._to + request.raw_path, encoded=True)
        session: ClientSession = request.app["session"]
        async with session.request(
            request.method, url, headers=request.headers, data=body or None, allow_redirects=False
        ) as reply:
            data = await reply.read()
            headers = {name: value for name, value in reply.headers.items() if name.lower() not in _ENDS_HERE}
            if request.method == "HEAD":  # The length is that of an object whose body is not sent.
                head = web.StreamResponse(status=reply.status, headers=headers)
                await head.prepare(request)
                return head
            headers.pop("Content-Length", None)
            return web.Response(status=reply.status, headers=headers, body=data)

    @staticmethod
    def _cut(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=500)


@click.command()
@click.option("--port", type=int, required=True)
@click.option("--to", required=True)
@click.option("--share", type=float, default=0.2)
@click.option("--seed", type=int, default=0)
def main(port: int, to: str, share: float, seed: int) -> None:
    """Serve until killed."""

    async def session(app: web.Application) -> object:
        app["session"] = ClientSession(connector=TCPConnector(limit=0), auto_decompress=False)
        yield
        await app["session"].close()

    app = web.Application(client_max_size=1 << 30)
    app.cleanup_ctx.append(session)  # type: ignore[arg-type]
    app.router.add_route("*", "/{path:.*}", FlakyProxy(to, share, seed).handle)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
