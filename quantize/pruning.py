"""Order and pruning of layers: names come in, names in llama.cpp's order and renumbered layers go out."""

import re
from collections.abc import Iterable, Sequence

from ..formats.errors import PlanError
from ..models.tensor_roles import layer_of

_LAYER = re.compile(r"blk\.(\d+)\.")


def writing_order(names: Iterable[str]) -> list[str]:
    """Sort tensor names as llama.cpp writes them: by layer, what is outside the layers first, then by name."""

    def key(name: str) -> tuple[int, bytes]:
        i_layer = layer_of(name)
        return (-1 if i_layer is None else i_layer, name.encode("utf-8", "surrogateescape"))

    return sorted(names, key=key)


def parse_layers(text: str) -> tuple[int, ...]:
    """Parse --prune-layers L0,L1,...; PlanError for anything but layer numbers."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise PlanError(f"layers to prune are numbers with commas between them, not {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def prune(names: Sequence[str], layers: Sequence[int]) -> tuple[dict[str, str], int]:
    """Leave out the tensors of `layers` and number the others' layers without gaps.

    `names` are in writing order. Returns new names to old ones, in the same order, and the number of layers left.
    Raises PlanError when a layer does not exist or none is left.
    """
    pruned = set(layers)
    present = {int(match[1]) for name in names if (match := _LAYER.search(name))}
    if missing := sorted(pruned - present):
        raise PlanError(f"layers to prune that the model does not have: {', '.join(map(str, missing))}")
    kept = sorted(present - pruned)
    if not kept:
        raise PlanError("all layers would be pruned; keep at least one")
    first = min(pruned)
    # Layers before the first pruned one keep their numbers, even where the file itself has gaps.
    head = [i for i in kept if i < first]
    start = head[-1] + 1 if head else 0
    tail = {old: start + i for i, old in enumerate(i for i in kept if i > first)}
    numbers = {i: i for i in head} | tail
    renamed: dict[str, str] = {}
    for name in names:
        match = _LAYER.search(name)
        if match is None:
            renamed[name] = name
        elif (old := int(match[1])) in numbers:
            renamed[f"{name[: match.start(1)]}{numbers[old]}{name[match.end(1) :]}"] = name
    return renamed, start + len(tail)
