"""The journal of an unfinished output: lets an interrupted run go on where it stopped.

    NAME.gguf.journal   one JSON object a line: first what the run is of, then {"done": slabs} as they reach the disk

A journal that belongs to another source or plan is refused with the reason.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ..formats.errors import OutputError

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

    Raises OutputError when another run holds it. Windows needs no such lock: it does not let a file that is open
    in one process be replaced by another.
    """
    if os.name == "nt":
        yield
        return
    place = journal_path(path)
    with open(place, "a") as file:
        if not _locked(file) or not _is_at(file, place):
            raise OutputError(f"{path}: another run is writing it; wait until it ends")
        try:
            yield
        finally:
            if _is_at(file, place) and place.stat().st_size == 0:
                place.unlink()


def _locked(file: TextIO) -> bool:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some network file systems cannot lock; then nobody is kept out.
        return True
    return True


def _is_at(file: TextIO, place: Path) -> bool:
    """Tell whether the open file is still the one of that name: a run that ends removes its journal."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    except FileNotFoundError:
        return False


def start_journal(path: Path, identity: Mapping[str, str]) -> None:
    """Begin the journal of an output anew."""
    with open(journal_path(path), "w", encoding="utf-8") as file:
        _append(file, dict(identity))


def add_to_journal(path: Path, entry: Mapping[str, int | bool]) -> None:
    """Append {"done": slabs} or {"complete": true}, and wait until it is on the disk."""
    with open(journal_path(path), "a", encoding="utf-8") as file:
        _append(file, entry)


def clear_journal(path: Path) -> None:
    """Forget how far an output came; the file stays, for it may be held."""
    if journal_path(path).exists():
        os.truncate(journal_path(path), 0)


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
