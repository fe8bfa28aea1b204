"""Which GGUF file of a folder is meant: the model, by what is in the files, and of its types the best to run."""

import re
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

from ..formats.errors import GgufError, MoeGgufError
from ..formats.file_kinds import part_of

# Which of a model's files to run when only its name is given, with their usual bits per weight: the usual compromise,
# then what is near it.
TO_RUN = {
    "Q4_K_M": 4.9,
    "Q5_K_M": 5.7,
    "Q4_K_S": 4.6,
    "Q5_K_S": 5.5,
    "Q6_K": 6.6,
    "IQ4_NL": 4.5,
    "IQ4_XS": 4.3,
    "Q8_0": 8.5,
    "Q5_1": 6.0,
    "Q5_0": 5.5,
    "Q4_1": 5.0,
    "Q4_0": 4.5,
    "Q3_K_L": 4.2,
    "Q3_K_M": 3.9,
    "IQ3_M": 3.7,
    "Q3_K_S": 3.5,
    "IQ3_S": 3.4,
    "IQ3_XS": 3.3,
    "IQ3_XXS": 3.1,
    "Q2_K": 2.9,
    "Q2_K_S": 2.7,
    "BF16": 16.0,
    "F16": 16.0,
    "F32": 32.0,
}
# Not what mixes are compared with: larger than K-quants as good.
LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
GGUF_NAME = re.compile(r"(?P<stem>.+?)[-.](?P<type>[A-Za-z0-9_]+)(?:-(?P<shard>\d{5})-of-\d{5})?\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """A GGUF file of a folder: the type in its name, and from its header what it is; None where that is broken."""

    path: Path
    named: str
    kind: str | None
    n_weights: int
    bits_per_weight: float


def best_gguf(folder: Path, order: tuple[str, ...] | None = None) -> Path | None:
    """Return the GGUF file of a folder to run, the newest of several as good; None when there is none.

    With `order` only files whose names say one of these types count, the first first. A file that is no model (a
    projector, an importance matrix, ...) is never returned, a smaller model beside a large one (to draft for it) only
    when it is alone, a broken one when no other is left; of a split file the first shard.
    """
    found = [one for path in _files(folder) if (one := _candidate(path, order))]
    models = [one for one in found if one.kind in ("model", None)]
    if not models:
        return None
    # Quantized or not, files of one model have the same number of weights.
    largest = max(one.n_weights for one in models)

    def rank(one: Candidate) -> tuple[bool, bool, float, float]:
        return one.kind is None, one.n_weights * 2 < largest, _rank(one, order), -one.path.stat().st_mtime

    return min(models, key=rank).path


def others_in(folder: Path) -> str | None:
    """Return what else lies in a folder without a model: "a projector (x.gguf)", or parts with how to join them."""
    from ..formats.gguf_file import read_gguf
    from ..models.gguf_kind import FOR, kind_of_gguf

    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and (part := part_of(path)):
            return f"{path.name} is {part}"
    for path in _files(folder):
        try:
            kind = kind_of_gguf(read_gguf(path))
        except MoeGgufError:
            continue
        return f"{path.name} is {kind}; {FOR[kind]}"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() == ".gguf") if folder.is_dir() else []


def _candidate(path: Path, order: tuple[str, ...] | None) -> Candidate | None:
    """Return what is known of a file; None for a later shard, and for a type that `order` has not."""
    name = GGUF_NAME.fullmatch(path.name)
    if name and name["shard"] not in (None, "00001"):
        return None
    named = name["type"].upper() if name else ""
    if order is not None and named not in order:
        return None
    state = path.stat()
    return Candidate(path, named, *_looked_at(path, state.st_mtime_ns, state.st_size))


@cache
def _looked_at(path: Path, changed: int, n_bytes: int) -> tuple[str | None, int, float]:
    """Return a file's kind, weights and bits per weight; looked at once while it does not change."""
    from ..formats.gguf_file import read_gguf
    from ..models.gguf_kind import GgufKind, kind_of_gguf

    try:
        file = read_gguf(path)
        kind = kind_of_gguf(file)
    except (GgufError, OSError):
        return None, 0, 0.0
    n_weights = sum(prod(tensor.shape) for tensor in file.tensors.values())
    stored = sum(tensor.n_bytes for tensor in file.tensors.values())
    name = "model" if kind is GgufKind.MODEL else str(kind)
    return name, n_weights, 8 * stored / n_weights if n_weights else 0.0


def _rank(one: Candidate, order: tuple[str, ...] | None) -> float:
    """Return the place in the order; a mix of another name (UD-Q4_K_XL, Q4_K_L) comes after the nearest in size."""
    places = list(TO_RUN) if order is None else list(order)
    if one.named in places:
        return places.index(one.named)
    if not one.bits_per_weight:
        return len(places)
    compared = [i for i, place in enumerate(places) if place not in LEGACY]
    return min(compared, key=lambda i: abs(TO_RUN[places[i]] - one.bits_per_weight)) + 0.5
