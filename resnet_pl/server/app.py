"""The web application of `serve`: a page, and an endpoint that answers in JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from typing_extensions import override

from resnet_pl.data.bad_images import BadImage, LargeImage
from resnet_pl.server.uploads import read_photos
from resnet_pl.server.worker import Worker
from resnet_pl.utils import UserError

# Of every response. `blob:` is for the photos that the page shows without uploading them again.
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
STATIC = Path(__file__).with_name("static")
# Requests whose photos are in memory; the others wait before their body is read.
MAX_IN_MEMORY = 8
MAX_CONNECTIONS = 256  # others are answered with 503


class _Json(JSONResponse):
    """JSON in ASCII: the name of a class can be a lone surrogate, from a folder whose name is not UTF-8."""

    @override
    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False).encode()


def create_app(worker: Worker, facts: Mapping[str, Any], hosts: Sequence[str]) -> Starlette:
    """Returns the application.

    Args:
        worker: classifies the photos.
        facts: the answer of `/model`; its `limits` are those of a request.
        hosts: values of the header Host that are accepted; `["*"]` for all.
    """
    max_bytes, max_pixels = facts["limits"]["bytes"], facts["limits"]["pixels"]
    in_memory = asyncio.Semaphore(MAX_IN_MEMORY)

    async def predict(request: Request) -> Response:
        top_k = request.query_params.get("top_k", "5")
        if not re.fullmatch("[1-9][0-9]{0,5}", top_k):
            raise HTTPException(400, "top_k must be a positive whole number")
        async with in_memory:
            photos = await read_photos(request, max_bytes)
            return _Json({"predictions": await worker.run(worker.classify, photos, int(top_k))})

    async def heatmap(request: Request) -> Response:
        async with in_memory:
            photos = await read_photos(request, max_bytes)
            if len(photos) != 1:
                raise HTTPException(400, "send one photo to get its heat map")
            png = await worker.run(worker.heatmap, photos[0], request.query_params.get("class"))
            return Response(png, media_type="image/png")

    async def model(request: Request) -> Response:
        return _Json(facts)

    async def health(request: Request) -> Response:
        return _Json({"status": "ok"})

    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/heatmap", heatmap, methods=["POST"]),
        Route("/model", model),
        Route("/health", health),
        *[Route(f"/{path.name}", partial(_send, path)) for path in STATIC.iterdir()],
        Route("/", partial(_send, STATIC / "index.html")),
    ]
    # A page whose name resolves to this computer (DNS rebinding) could otherwise read the answers: its requests have
    # the same origin for the browser, but another Host.
    check = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    handlers: dict[Any, Any] = {
        HTTPException: _http_error,
        LargeImage: lambda request, error: _error(413, f"more than {max_pixels:,} pixels", file=str(error.path)),
        BadImage: lambda request, error: _error(400, error.reason, file=str(error.path)),
        UserError: lambda request, error: _error(400, str(error).replace("\n", "; ")),
        ClientDisconnect: lambda request, error: _error(400, "the client has closed the connection"),
        Exception: lambda request, error: _error(500, "internal error, see the output of the server"),
    }
    return Starlette(routes=routes, middleware=[check], exception_handlers=handlers)


async def _send(path: Path, request: Request) -> Response:
    return FileResponse(path)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail, headers=error.headers)


def _error(status: int, message: str, headers: Mapping[str, str] | None = None, **more: str) -> Response:
    return _Json({"error": message, **more}, status, headers)


def create_server(app: Starlette) -> uvicorn.Server:
    """Returns a server for the application; its `run` takes a socket."""
    # A warning for each damaged form would fill the terminal.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="error",
            access_log=False,
            server_header=False,
            headers=list(HEADERS.items()),
            ws="none",
            lifespan="off",
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
    )
