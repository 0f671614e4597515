"""What the server refuses: other sites, other names of the host, and everyone without the token."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 24
MAX_BODY_BYTES = 4 << 20  # of a request; a thousand landmarks take 50 kB
SAFE_METHODS = ("GET", "HEAD")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def make_token() -> str:
    """A random token for the address of the page."""
    return secrets.token_urlsafe(TOKEN_BYTES)


class Guard:
    """Lets a request through only if it comes from the page itself.

    The token is the first part of every path. A page of another site cannot know it; even if it
    did, its requests carry another ``Origin``, and a name that it has pointed to this computer
    (DNS rebinding) is another ``Host``.

    Args:
        app: that answers the requests.
        token: of the address.
        hosts: allowed values of the Host header, ``name:port``.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Iterable[str]) -> None:
        self.app, self.token = app, token
        self.hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self.refusal(scope) if scope["type"] == "http" else (403, "not served")
        if refusal is not None:
            status, text = refusal
            await PlainTextResponse(text, status, headers=HEADERS)(scope, receive, send)
            return
        await self.app(self._below_token(scope), receive, _with_headers(send))

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason of a refused request; None for an allowed one.

        Args:
            scope: of an HTTP request (ASGI).
        """
        headers = Headers(scope=scope)
        if headers.get("host", "").lower() not in self.hosts:
            return 403, "refused: this name of the host was not given"
        given = scope["path"].split("/")[1] if scope["path"].startswith("/") else ""
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return 403, "refused: the address lacks the token that review.py printed"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in {f"http://{host}" for host in self.hosts}:
            return 403, "refused: a request of another site"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "refused: a request of another site"
        if scope["method"] in SAFE_METHODS:
            return None
        if headers.get("content-type", "").split(";")[0] != "application/json":
            return 415, "refused: changes are sent as application/json"
        length = headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return 413, "refused: a request of unknown or excessive length"
        return None

    def _below_token(self, scope: Scope) -> Scope:
        """The request without the token in its path."""
        prefix = f"/{self.token}"
        path = scope["path"][len(prefix) :]
        return {**scope, "path": path or "/", "raw_path": path.encode(), "root_path": ""}


def _with_headers(send: Send) -> Send:
    """Add the headers of every answer."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in given
                ),
            ]
        await send(message)

    return send_with_headers
