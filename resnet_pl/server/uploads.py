"""Reads the photos of an HTTP request into memory, within limits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

MAX_FILES = 32
MAX_FIELDS = 32  # parts of a form that are not files; they are ignored
SECONDS = 60  # for the body of a request


class Photo(NamedTuple):
    """A file of a request.

    Attributes:
        name: its name, as the client gives it; "body" if it is the body of the request.
        data: its content.
    """

    name: str
    data: bytes


class _MemoryParser(MultiPartParser):
    """Never moves a large file to the disk."""

    spool_max_size = sys.maxsize


async def read_photos(request: Request, max_bytes: int) -> list[Photo]:
    """Returns the photos of a request: the files of a multipart form, or else the body.

    Args:
        request: the request.
        max_bytes: largest body.

    Raises:
        HTTPException: with status 400, 403, 408 or 413, see docs/deploy.md.
    """
    # A page of another site could not read the answer, but it could make this server work.
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise HTTPException(403, "requests from the pages of other sites are refused")
    body = _limited(request, max_bytes)
    try:
        async with asyncio.timeout(SECONDS):
            if not request.headers.get("content-type", "").lower().startswith("multipart/"):
                return [Photo("body", b"".join([chunk async for chunk in body]))]
            parser = _MemoryParser(request.headers, body, max_files=MAX_FILES, max_fields=MAX_FIELDS)
            form = await parser.parse()
    except TimeoutError as error:
        raise HTTPException(408, f"the request was not received within {SECONDS} seconds") from error
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise HTTPException(400, "the form has no file: with curl, write -F photo=@FILE")
    return [Photo(file.filename or "file", await file.read()) for file in files]


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yields the body of a request.

    After the limit, the rest is read and discarded: a client that is still sending would not receive the answer.
    """
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            yield chunk
    if size > max_bytes:
        raise HTTPException(413, f"the request has {size:,} bytes, more than {max_bytes:,}")
