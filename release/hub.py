"""What publish and verify share of the hub: its refusals as one line each, in which no token ever stands."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..formats.errors import ReleaseError

REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
# What the hub's tokens look like, whoever's they are.
TOKEN = re.compile(r"\b(?:hf|api|oauth)_[A-Za-z0-9_-]{6,}")
FULL = (402, 507)
# What carries the hub's answers differs between versions of huggingface_hub, and with it what a lost connection raises.
CARRIERS = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")


def is_repo(name: str) -> bool:
    """Tell whether a name can be that of a repository, OWNER/NAME."""
    return REPO.fullmatch(name) is not None and ".." not in name


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
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = constants.ENDPOINT
    try:
        yield
    except GatedRepoError:
        message = f"gated; accept its terms at {endpoint}/{repo}, and log in (hf auth login, or HF_TOKEN)"
    except RepositoryNotFoundError:
        message = f"no such repository on {endpoint}, or it is private: log in (hf auth login, or HF_TOKEN)"
    except RevisionNotFoundError:
        message = f"has no such branch, tag or commit on {endpoint}"
    except LocalTokenNotFoundError:
        message = f"cannot {doing} without logging in: run hf auth login, or set HF_TOKEN"
    except HFValidationError:
        message = "not a name that the hub can have; write OWNER/NAME"
    except OfflineModeIsEnabled:
        message = f"cannot {doing}: HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        message = _told_by(error, doing, endpoint)
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in CARRIERS:
            raise
        message = f"cannot {doing} {endpoint}: {_first_line(error)}; run it again to go on"
    else:
        return
    raise ReleaseError(without_token(f"{repo}: {message}")) from None


def _told_by(error: "Exception", doing: str, endpoint: str) -> str:
    """Say what an answer of the hub means."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    said = getattr(error, "server_message", None) or _first_line(error)
    if status == 401:
        return f"cannot {doing} {endpoint}: it does not know the token; log in again (hf auth login, or HF_TOKEN)"
    if status in FULL or "quota" in said.lower() or "storage limit" in said.lower():
        return f"no room left on {endpoint}: {said}; free some, or get more, and run it again to go on"
    if status == 403:
        return f"cannot {doing} {endpoint}: not allowed with this token: {said}"
    if status == 429:
        return f"cannot {doing} {endpoint}: it asks to wait ({said}); run it again later to go on"
    return f"cannot {doing} {endpoint}: {said}; run it again to go on"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
