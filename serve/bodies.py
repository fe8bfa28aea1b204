"""Bodies of requests: bounded in size and in time."""

import asyncio

from starlette.requests import Request

from .errors import ApiError

SECONDS = 30.0


async def read_body(request: Request, largest: int, seconds: float = SECONDS) -> bytes:
    """Return the body. Raises ApiError for one that is too large, or takes too long to come."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > largest:
        raise ApiError(413, f"the body has {declared} bytes; {largest} are the most")
    found = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for piece in request.stream():
                found += piece
                if len(found) > largest:
                    raise ApiError(413, f"the body has more than {largest} bytes")
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {seconds:g} seconds") from None
    return bytes(found)
