"""What went wrong, as an answer in OpenAI's form: {"error": {"message", "type", "param", "code"}} with a status."""

from typing import Any

from ..formats.errors import EngineError, MoeGgufError
from .scheduler import Stopped
from .waiting import QueueFull

# OpenAI's names of what a status is about
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
RETRY_SECONDS = 2


class ApiError(MoeGgufError):
    """A request that is refused: a status, a sentence, the wrong parameter, OpenAI's code, numbers beside them."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, **more: int
    ) -> None:
        super().__init__(message)
        self.more = more
        self.status = status
        self.param = param
        self.code = code

    @property
    def headers(self) -> dict[str, str]:
        """The headers that belong to the status."""
        return {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}

    def as_json(self) -> dict[str, Any]:
        """Return the body."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code, **self.more}}


def api_error(error: MoeGgufError, hidden: tuple[tuple[str, str], ...] = ()) -> ApiError:
    """Return any error as a refusal; `hidden` are texts that no client may read, and what stands for them."""
    if isinstance(error, ApiError):
        return error
    message = str(error)
    for text, shown in hidden:
        message = message.replace(text, shown)
    if isinstance(error, QueueFull):
        return ApiError(429, message, code="queue_full")
    if isinstance(error, Stopped):
        return ApiError(503, message, code="stopping")
    return ApiError(400 if isinstance(error, EngineError) else 500, message)
