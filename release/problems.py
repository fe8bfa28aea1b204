"""What a check found: problems by kind and place, tensors by how they compare, a file, and all files.

The JSON is stable (docs/release.md): {"ok", "files": [{"path", "ok", "problems": [{"kind", "tensor", "expert", "rows",
"message"}], "tensors": {"exact", "same_type", "wrong", "unchecked"}}]}.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

Ranges = Sequence[tuple[int, int]]
# Of a tensor that was rounded otherwise, every second row may be a range of its own.
MOST_RANGES = 64


class Kind(StrEnum):
    """What is wrong, in a word."""

    MISSING = "missing"
    CHECKSUM = "checksum"
    MANIFEST = "manifest"
    TRUNCATED = "truncated"
    STRUCTURE = "structure"
    PADDING = "padding"
    MIX = "mix"
    METADATA = "metadata"
    DESCRIPTION = "description"
    TENSORS = "tensors"
    WRONG = "wrong"
    EXPERT = "expert"
    ROUTER = "router"
    OTHER_BYTES = "other bytes"
    NONFINITE = "not finite"
    LOAD = "load"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. `rows` are ranges [start, stop) of the tensor's rows, or of those of its `expert`."""

    kind: Kind
    message: str
    tensor: str | None = None
    expert: int | None = None
    rows: tuple[tuple[int, int], ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON; what does not apply is null."""
        return {
            "kind": str(self.kind),
            "tensor": self.tensor,
            "expert": self.expert,
            "rows": [list(pair) for pair in self.rows[:MOST_RANGES]] or None,
            "message": self.message,
        }


@dataclass(frozen=True)
class TensorCounts:
    """How many tensors are equal bit for bit, are of the same type with other bytes, are wrong, were not looked at."""

    exact: int = 0
    same_type: int = 0
    wrong: int = 0
    unchecked: int = 0


@dataclass
class FileReport:
    """What was found of one file; `notes` are no problems, `types` counts its tensors by type."""

    path: str
    problems: list[Problem] = field(default_factory=list)
    tensors: TensorCounts = field(default_factory=TensorCounts)
    notes: list[str] = field(default_factory=list)
    mix: str | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def add(self, kind: Kind, message: str, tensor: str | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, message, tensor))

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON of one file."""
        return {
            "path": self.path,
            "ok": self.ok,
            "problems": [problem.as_json() for problem in self.problems],
            "tensors": asdict(self.tensors),
        }


@dataclass(frozen=True)
class Report:
    """What was found of all files; `coverage` says in words how much of their tensors was compared."""

    files: tuple[FileReport, ...]
    coverage: str | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with any file."""
        return all(file.ok for file in self.files)

    def as_json(self) -> dict[str, Any]:
        """Return what `verify --json` prints."""
        return {"ok": self.ok, "files": [file.as_json() for file in self.files]}


def shown(ranges: Ranges) -> str:
    """Return ranges of rows in words: "row 5", "rows 0 to 4, 7"."""
    parts = [str(start) if stop == start + 1 else f"{start} to {stop - 1}" for start, stop in ranges]
    one = len(ranges) == 1 and ranges[0][1] == ranges[0][0] + 1
    return f"row{'' if one else 's'} {', '.join(parts[:4])}{', ...' if len(parts) > 4 else ''}"
