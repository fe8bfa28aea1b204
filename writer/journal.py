"""The journal of an unfinished output: lets an interrupted run go on where it stopped.

    NAME.gguf.journal   one JSON object a line: first what the run is of, then {"done": slabs} as they reach the disk
    NAME.gguf.lock      empty; held while a run lasts

A journal that belongs to another source or plan is refused with the reason.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..formats.errors import OutputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

COMPLETE = "complete"


@dataclass(frozen=True)
class Progress:
    """How far an output is: leading slabs whose bytes are on the disk, and whether nothing is left but its name."""

    done: int
    complete: bool


def journal_path(path: Path) -> Path:
    """Return where the journal of an output lies."""
    return path.with_name(path.name + ".journal")


def read_journal(path: Path, identity: Mapping[str, str]) -> Progress | None:
    """Return how far the output at `path` came, or None when no journal is there.

    Raises OutputError when the journal is of another run, naming what differs.
    """
    place = journal_path(path)
    try:
        lines = [json.loads(line) for line in _whole_lines(place)]
        if not lines:
            return None
        difference = _difference(lines[0], identity)
        done = max((int(line.get("done", 0)) for line in lines[1:]), default=0)
        complete = any(line.get(COMPLETE) for line in lines[1:])
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise OutputError(f"{place}: broken journal; remove it, or drop it with --force") from None
    if difference:
        raise OutputError(
            f"{place}: the unfinished run it belongs to differs: {difference}; "
            "undo that to go on, or drop it with --force"
        )
    return Progress(done, complete)


@contextmanager
def only_run(path: Path) -> Iterator[None]:
    """Hold the journal of an output, so that two runs never write into the same files; a killed run lets go.

    The lock lies beside the journal while a run lasts. Raises OutputError when another run holds it.
    """
    from filelock import FileLock, Timeout

    place = path.with_name(path.name + ".lock")
    lock = FileLock(place, timeout=0, fallback_to_soft=False)
    # Some network file systems cannot lock (OSError); then nobody is kept out.
    with suppress(OSError):
        try:
            lock.acquire()
        except Timeout:
            raise OutputError(f"{path}: another run is writing it; wait until it ends") from None
    try:
        yield
    finally:
        if lock.is_locked:
            _release(lock, place)


def _release(lock: "BaseFileLock", place: Path) -> None:
    """Let go and remove the file: before that where the system allows it, so that it is nobody else's by then."""
    try:
        if os.name != "nt":
            place.unlink(missing_ok=True)
    finally:
        lock.release()
    if os.name == "nt":
        with suppress(OSError):
            place.unlink()


def start_journal(path: Path, identity: Mapping[str, str]) -> None:
    """Begin the journal of an output anew."""
    with open(journal_path(path), "w", encoding="utf-8") as file:
        _append(file, dict(identity))


def add_to_journal(path: Path, entry: Mapping[str, int | bool]) -> None:
    """Append {"done": slabs} or {"complete": true}, and wait until it is on the disk."""
    with open(journal_path(path), "a", encoding="utf-8") as file:
        _append(file, entry)


def clear_journal(path: Path) -> None:
    """Forget how far an output came."""
    journal_path(path).unlink(missing_ok=True)


def _append(file: TextIO, entry: Mapping[str, object]) -> None:
    file.write(json.dumps(entry) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _whole_lines(place: Path) -> list[str]:
    """Return the lines that end; a last one without an end was being written when the run died."""
    text = place.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _difference(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    for key in (*was, *now):
        if was.get(key) != now.get(key):
            if key not in now:
                return f"{key} is no longer read"
            if key not in was:
                return f"{key} was not read"
            return f"{key} was {was[key]}, is {now[key]}" if os.path.isabs(key) else f"{key} differ"
    return ""
