"""What publish and verify share of the hub: its refusals as one line each, in which no token ever stands."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..formats.errors import ReleaseError
from ..jobs.listener import Listener

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TRIES = 5
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# What the hub's tokens look like, whoever's they are.
TOKEN = re.compile(r"\b(?:hf|api|oauth)_[A-Za-z0-9_-]{6,}")
FULL = (402, 507)
BUSY = (408, 429, 500, 502, 503, 504)
# What carries the hub's answers differs between versions of huggingface_hub, and with it what a lost connection raises.
CARRIERS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


def is_repo(name: str) -> bool:
    """Tell whether a name can be that of a repository, OWNER/NAME."""
    return REPO.fullmatch(name) is not None and ".." not in name


def endpoint() -> str:
    """Return where the hub is: HF_ENDPOINT, else the public one."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or constants.ENDPOINT


def hub_api() -> "HfApi":
    """Return huggingface_hub's client for that hub; it finds the token by itself (HF_TOKEN, hf auth login)."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(), library_name="moe-gguf")


def without_token(text: str) -> str:
    """Return a text with every token in it blotted out: the one that is in use, and whatever looks like one."""
    from huggingface_hub import get_token

    token = get_token()
    return TOKEN.sub("hf_...", text.replace(token, "hf_...") if token else text)


@contextmanager
def refusals(repo: str, doing: str) -> Iterator[None]:
    """Turn the hub's errors into one line each; `doing` is what could not be done ("be read", "be sent to").

    Raises ReleaseError: no such repository, no access, no network, no room, or the hub's own words.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = endpoint()
    try:
        yield
    except GatedRepoError:
        message = f"gated; accept its terms at {where}/{repo}, and log in (hf auth login, or HF_TOKEN)"
    except RepositoryNotFoundError:
        message = f"no such repository on {where}, or it is private: log in (hf auth login, or HF_TOKEN)"
    except RevisionNotFoundError:
        message = f"has no such branch, tag or commit on {where}"
    except LocalTokenNotFoundError:
        message = f"cannot {doing} {where} without logging in: run hf auth login, or set HF_TOKEN"
    except HFValidationError:
        message = "not a name that the hub can have; write OWNER/NAME"
    except OfflineModeIsEnabled:
        message = f"cannot {doing}: HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        message = _told_by(error, doing, where)
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in CARRIERS:
            raise
        message = f"cannot {doing} {where}: {_first_line(error)}; run it again to go on"
    else:
        return
    raise ReleaseError(without_token(f"{repo}: {message}")) from None


def _told_by(error: "Exception", doing: str, where: str) -> str:
    """Say what an answer of the hub means."""
    status = status_of(error)
    said = getattr(error, "server_message", None) or _first_line(error)
    if status == 401:
        return f"cannot {doing} {where}: it does not know the token; log in again (hf auth login, or HF_TOKEN)"
    if status in FULL or "quota" in said.lower() or "storage limit" in said.lower():
        return f"no room left on {where}: {said}; free some, or get more, and run it again to go on"
    if status == 403:
        return f"cannot {doing} {where}: not allowed with this token: {said}"
    if status == 429:
        return f"cannot {doing} {where}: it asks to wait ({said}); run it again later to go on"
    return f"cannot {doing} {where}: {said}; run it again to go on"


def patiently(call: Callable[[], Any], listener: Listener, arrived: Callable[[], bool] | None = None) -> Any:
    """Call, and call again when the hub is busy or a connection was lost, after as long as it asks to wait.

    `arrived` is asked, when an answer was lost, whether the call had its effect; then None is returned.
    """
    for attempt in range(TRIES):
        try:
            return call()
        except Exception as error:
            if attempt == TRIES - 1 or not is_passing(error):
                raise
            seconds = seconds_to_wait(error, attempt)
            status = status_of(error)
            what = f"the hub answers {status}" if status else "the connection was lost"
            listener.say(without_token(f"{what}; again in {seconds:.0f} s"))
            time.sleep(seconds)
            if not status and arrived and arrived():
                return None
    raise AssertionError("the last try returns or raises")


def is_passing(error: BaseException) -> bool:
    """Tell whether it is worth asking again: the hub is busy or broken for a moment, or a connection was lost."""
    status = status_of(error)
    return status in BUSY if status else type(error).__module__.split(".")[0] in CARRIERS


def status_of(error: BaseException) -> int:
    """Return the status of the answer that an error is about, 0 when there was none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def seconds_to_wait(error: BaseException, attempt: int) -> float:
    """Return how long the hub asks to wait (Retry-After), else 1, 2, 4, ... seconds."""
    said = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After", "")
    return float(said) if said.isdecimal() else float(2**attempt)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
