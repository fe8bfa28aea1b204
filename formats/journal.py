"""The journal of an unfinished output: lets an interrupted run go on where it stopped.

    NAME.gguf.journal   one JSON object a line: first what the run is of, then {"done": slabs} as they reach the disk

A journal that belongs to another source or plan is refused with the reason.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .errors import OutputError

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
    except FileNotFoundError:
        return None
    except ValueError:
        raise OutputError(f"{place}: broken journal; remove it, or drop it with --force") from None
    if not lines:
        return None
    difference = _difference(lines[0], identity)
    if difference:
        raise OutputError(
            f"{place}: the unfinished run it belongs to differs: {difference}; "
            "undo that to go on, or drop it with --force"
        )
    done = max((line.get("done", 0) for line in lines[1:]), default=0)
    return Progress(done, any(line.get(COMPLETE) for line in lines[1:]))


def start_journal(path: Path, identity: Mapping[str, str]) -> None:
    """Begin the journal of an output anew."""
    with open(journal_path(path), "w", encoding="utf-8") as file:
        _append(file, dict(identity))


def add_to_journal(path: Path, entry: Mapping[str, int | bool]) -> None:
    """Append {"done": slabs} or {"complete": true}, and wait until it is on the disk."""
    with open(journal_path(path), "a", encoding="utf-8") as file:
        _append(file, entry)


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
            return f"{key} was {was[key]}, is {now[key]}"
    return ""
