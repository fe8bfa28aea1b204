"""Typed reading of a recipe's fields: a mapping and a key in, a checked value or one error line out."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..formats.errors import RecipeError

LARGEST = 3.4e38  # what weights are computed in is float32


@dataclass(frozen=True)
class Where:
    """Which file, and which part of it, a value comes from."""

    file: str
    part: str

    @property
    def prefix(self) -> str:
        """The file and part as the beginning of an error line."""
        return f"{self.file}: {self.part}: " if self.part else f"{self.file}: "

    def at(self, part: str) -> "Where":
        """Return a part within this part."""
        return replace(self, part=f"{self.part}, {part}" if self.part else part)

    def field(self, key: str) -> str:
        """Return the name of a field here."""
        return f"{self.prefix}{key}"


def check_keys(content: Mapping[Any, Any], known: Sequence[str], where: Where) -> None:
    """Raise RecipeError for the first unknown key, naming the nearest known one."""
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise RecipeError(f"{where.prefix}unknown key {str(key)!r}; {hint}")


def table(value: Any, where: Where) -> Mapping[str, Any]:
    """Return a mapping; raise RecipeError for anything else."""
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where.prefix}a table of keys and values is needed, not {_kind(value)}")
    return value


def tables(content: Mapping[str, Any], key: str, where: Where, required: bool = False) -> tuple[Mapping[str, Any], ...]:
    """Return a list of mappings; empty when absent and not required."""
    value = content.get(key)
    if value is None and not required:
        return ()
    if required and value is not None and not value:
        raise RecipeError(f"{where.field(key)} names no expert; a mixture is made of at least one")
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RecipeError(f"{where.field(key)} must be a list of experts, not {_kind(value)}")
    return tuple(table(entry, where.at(f"{key}[{index}]")) for index, entry in enumerate(value))


def text(content: Mapping[str, Any], key: str, where: Where, choices: Sequence[str] = ()) -> str | None:
    """Return a string or None; raise RecipeError when it is none of the choices."""
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RecipeError(f"{where.field(key)} must be text, not {_kind(value)}")
    _check_unicode(value, where.field(key))
    if choices and value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it must be one of {', '.join(choices)}"
        raise RecipeError(f"{where.field(key)} is {value!r}; {hint}")
    return value


def strings(content: Mapping[str, Any], key: str, where: Where) -> tuple[str, ...]:
    """Return a list of strings; empty when absent."""
    value = content.get(key)
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RecipeError(f"{where.field(key)} must be a list of texts, not {_kind(value)}")
    for index, entry in enumerate(value):
        if not isinstance(entry, str):
            raise RecipeError(
                f"{where.field(key)}: entry {index + 1} is {_kind(entry)} ({entry!r}), not text; quote it"
            )
        _check_unicode(entry, f"{where.field(key)}: entry {index + 1}")
    return tuple(value)


def _check_unicode(value: str, field: str) -> None:
    """Refuse half characters, which YAML can spell and no tokenizer takes."""
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RecipeError(f"{field} is not valid Unicode: {value!r}")


def number(content: Mapping[str, Any], key: str, where: Where) -> float | None:
    """Return a finite number or None; YAML 1.1 reads 1e-3 as text, which is meant as a number."""
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise RecipeError(f"{where.field(key)} must be a number, not {value!r}")
    return float(value)


def integer(content: Mapping[str, Any], key: str, where: Where) -> int | None:
    """Return a whole number or None."""
    value = content.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise RecipeError(f"{where.field(key)} must be a whole number, not {value!r}")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    return names.get(type(value), type(value).__name__)
