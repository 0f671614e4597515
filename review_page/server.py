"""The web server: its addresses, and how it is started.

Every address is below a random token, see :mod:`review_page.security`. Addresses name pairs by
their id, never a path.
"""

from __future__ import annotations

import json
import socket
import threading
import webbrowser
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from review_page.annotating import Annotator
from review_page.exports import accepted_csv, contact_sheet, flicker
from review_page.report_page import supplement
from review_page.review_set import open_review_set
from review_page.security import Guard, make_token
from review_page.workspace import Workspace
from utils.errors import InputError

STATIC = Path(__file__).resolve().parent / "static"
LOCAL_HOST = "127.0.0.1"
# Tried first: a browser keeps what is not saved by the port. Any free one if it is taken.
USUAL_PORT = 8765
KEEP = {"Cache-Control": "private, max-age=86400, immutable"}  # the address changes with it
FRESH = {"Cache-Control": "no-store"}
Handler = Callable[[Request], Awaitable[Response]]


def make_app(workspace: Workspace, token: str, hosts: set[str], read_only: bool) -> ASGIApp:
    """The web application.

    Args:
        workspace: what it works on.
        token: first part of every path.
        hosts: allowed values of the Host header.
        read_only: whether nothing can be saved.
    """
    routes = [
        Route("/", lambda request: FileResponse(STATIC / "index.html", headers=FRESH)),
        Route("/static/{name}", static_file),
        Route("/api/pairs", answering(lambda request: _list_pairs(workspace, read_only))),
        Route("/api/verdicts", answering(lambda request: workspace.list_verdicts())),
        Route("/api/thumbnail", answering(lambda request: _thumbnail(workspace, request))),
        Route("/api/pair", answering(lambda request: workspace.describe_pair(_id(request)))),
        Route("/api/tile", answering(lambda request: _tile(workspace, request))),
        Route("/api/export/{name}", answering(lambda request: _export(workspace, request))),
        *(
            Route(f"/api/{name}", posting(action, writes and read_only), methods=["POST"])
            for name, action, writes in actions_of(workspace)
        ),
    ]
    return Guard(Starlette(routes=routes), token, hosts)


def actions_of(workspace: Workspace) -> list[tuple[str, Callable[[dict[str, Any]], Any], bool]]:
    """Name of each POST request, what it does with its body, and whether it writes a file.

    Args:
        workspace: what it works on.
    """
    annotator = Annotator(workspace)
    return [
        ("propose", annotator.propose, False),
        ("refine", annotator.refine, False),
        ("fit", annotator.fit, False),
        ("landmarks", annotator.save, True),
        ("verdict", lambda body: _change_verdict(workspace, body), True),
        ("register", lambda body: workspace.register(_text(body, "id")), False),
    ]


async def static_file(request: Request) -> Response:
    """A file of the page itself; its name is compared with those that exist."""
    name = request.path_params["name"]
    known = {path.name: path for path in STATIC.iterdir() if path.is_file()}
    if name not in known:
        return PlainTextResponse("no such file", 404)
    return FileResponse(known[name], headers={"Cache-Control": "no-cache"})


def answering(respond: Callable[[Request], Any]) -> Handler:
    """A GET request that is answered in a thread; an error becomes its message.

    Args:
        respond: gives a response, or what becomes JSON.
    """

    async def handle(request: Request) -> Response:
        try:
            found = await run_in_threadpool(respond, request)
        except (InputError, OSError) as error:
            return JSONResponse({"error": str(error)}, 422, headers=FRESH)
        return found if isinstance(found, Response) else JSONResponse(found, headers=FRESH)

    return handle


def posting(action: Callable[[dict[str, Any]], Any], refused: bool) -> Handler:
    """A POST request with a JSON object as its body.

    Args:
        action: takes the body, gives what becomes JSON.
        refused: whether it is refused because nothing may be saved.
    """

    async def handle(request: Request) -> Response:
        if refused:
            return JSONResponse({"error": "this page is read-only (--read_only)."}, 403)
        try:
            body = json.loads(await request.body())
            if not isinstance(body, dict):
                raise InputError("the body of the request must be an object.")
            return JSONResponse(await run_in_threadpool(action, body), headers=FRESH)
        except (ValueError, RecursionError) as error:
            return JSONResponse({"error": f"not JSON: {error}"}, 400, headers=FRESH)
        except (InputError, OSError) as error:
            return JSONResponse({"error": str(error)}, 422, headers=FRESH)

    return handle


def _list_pairs(workspace: Workspace, read_only: bool) -> dict[str, Any]:
    return {**workspace.list_pairs(), "read_only": read_only}


def _change_verdict(workspace: Workspace, body: dict[str, Any]) -> dict[str, Any]:
    identity = workspace.review.item(_text(body, "id")).id
    verdict, note = body.get("verdict"), body.get("note")
    if not all(value is None or isinstance(value, str) for value in (verdict, note)):
        raise InputError("verdict and note are texts.")
    return {"id": identity, "verdict": list(workspace.verdicts.change(identity, verdict, note))}


def _thumbnail(workspace: Workspace, request: Request) -> Response:
    data = workspace.thumbnail(_id(request))
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-cache"})


def _tile(workspace: Workspace, request: Request) -> Response:
    query = request.query_params
    try:
        place = (int(query["level"]), int(query["x"]), int(query["y"]))
        layer, name = query["layer"], query.get("t", "")
    except (KeyError, ValueError) as error:
        raise InputError(f"a tile needs layer, level, x and y ({error}).") from error
    data = workspace.tile(_id(request), layer, name, place, query.get("c") == "green")
    if data is None:
        return PlainTextResponse("beyond the image", 404)
    return Response(data, media_type="image/jpeg", headers=KEEP)


def _export(workspace: Workspace, request: Request) -> Response:
    name = request.path_params["name"]
    if name == "accepted.csv":
        content: str | bytes = accepted_csv(workspace)
        media = "text/csv"
    elif name == "supplement.html":
        # Offered as a download: its scripts must not run with the rights of this page.
        content, media = supplement(workspace), "application/octet-stream"
    elif name in ("contact_sheet.pdf", "contact_sheet.png"):
        kind = name.rsplit(".", 1)[1]
        content = contact_sheet(workspace, kind)
        media = {"pdf": "application/pdf", "png": "image/png"}[kind]
    elif name in ("flicker.gif", "flicker.webp"):
        kind = name.rsplit(".", 1)[1]
        content, media = flicker(workspace, _id(request), kind), f"image/{kind}"
    else:
        return PlainTextResponse("no such export", 404)
    headers = {**FRESH, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media, headers=headers)


def _id(request: Request) -> str:
    return request.query_params.get("id", "")


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise InputError(f"the request lacks the text {name!r}.")
    return value


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Args:
        host: name or number of the address.
        port: 0 for any free port.

    Raises:
        InputError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise InputError(
            f"--host {host} --port {port}: cannot be used ({error}); give another port, or 0."
        ) from error
    return listening


def open_usual_socket(host: str) -> socket.socket:
    """Listen on the usual port, or on any free one while it is taken.

    Args:
        host: name or number of the address.

    Raises:
        InputError: the address cannot be used.
    """
    try:
        return open_socket(host, USUAL_PORT)
    except InputError:  # taken, as a rule by another page; a wrong host is refused below
        return open_socket(host, 0)


def serve(
    workspace: Workspace, host: str, port: int | None, read_only: bool, open_browser: bool
) -> None:
    """Serve the page until Ctrl-C; its address is printed first.

    Args:
        workspace: what it works on.
        host: address to listen on.
        port: to listen on; None for the usual one, or another that is free.
        read_only: whether nothing can be saved.
        open_browser: whether to open the page in a browser.

    Raises:
        InputError: the address cannot be used.
    """
    listening = open_socket(host, port) if port is not None else open_usual_socket(host)
    port = listening.getsockname()[1]
    token = make_token()
    hosts = {f"{name}:{port}" for name in ({host, "localhost"} if host == LOCAL_HOST else {host})}
    if host in ("0.0.0.0", "::"):
        hosts |= {f"{name}:{port}" for name in (LOCAL_HOST, "localhost", socket.gethostname())}
    shown = LOCAL_HOST if host in ("0.0.0.0", "::") else host
    address = f"http://{shown}:{port}/{token}/"
    app = make_app(workspace, token, hosts, read_only)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none")
    print(f"{len(workspace.review.items)} pairs of {workspace.review.root}")
    for problem in workspace.review.problems:
        print(f"  {problem}")
    print(f"Open {address} (Ctrl-C ends it)", flush=True)
    if open_browser:
        threading.Timer(0.3, webbrowser.open, [address]).start()
    uvicorn.Server(config).run(sockets=[listening])


def review(results: Path) -> None:
    """Open the page on a results folder, as review.py does without options.

    Args:
        results: folder that register.py wrote.
    """
    workspace = Workspace(open_review_set(results))
    serve(workspace, LOCAL_HOST, None, read_only=False, open_browser=True)
