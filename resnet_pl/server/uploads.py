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
# A body that arrives more slowly would keep its place in the memory, for which other requests wait.
GRACE_SECONDS, MIN_BYTES_PER_SECOND = 5, 100_000


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
    try:
        async with asyncio.timeout(GRACE_SECONDS) as limit:
            body = _limited(request, max_bytes, limit)
            if not request.headers.get("content-type", "").lower().startswith("multipart/"):
                return [Photo("body", b"".join([chunk async for chunk in body]))]
            parser = _MemoryParser(request.headers, body, max_files=MAX_FILES, max_fields=MAX_FIELDS)
            form = await parser.parse()
    except TimeoutError as error:
        rate = f"{MIN_BYTES_PER_SECOND // 1000} kB per second after the first {GRACE_SECONDS} seconds"
        raise HTTPException(408, f"the request took more than {SECONDS} seconds, or less than {rate}") from error
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise HTTPException(400, "the form has no file: with curl, write -F photo=@FILE")
    return [Photo(file.filename or "file", await file.read()) for file in files]


async def _limited(request: Request, max_bytes: int, limit: asyncio.Timeout) -> AsyncGenerator[bytes, None]:
    """Yields the body of a request, and postpones the time limit as it arrives.

    After the limit, the rest is read and discarded: a client that is still sending would not receive the answer.
    """
    size, start = 0, asyncio.get_running_loop().time()
    async for chunk in request.stream():
        size += len(chunk)
        limit.reschedule(start + min(SECONDS, GRACE_SECONDS + size / MIN_BYTES_PER_SECOND))
        if size <= max_bytes:
            yield chunk
    if size > max_bytes:
        raise HTTPException(413, f"the request has {size:,} bytes, more than {max_bytes:,}")
