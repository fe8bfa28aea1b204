"""models.toml, the catalogue: reads it, checks it, gives every model as data. Its schema: docs/catalogue.md.

The fields of a merge recipe are handed through as they stand; only `merge.recipe` knows what they mean.

Long because every key of one format is read and checked here.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..formats.errors import CatalogueError

RECIPE_KEYS = (
    "base_model",
    "experts",
    "shared_experts",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "architecture",
    "seed",
)
RESULT_KEYS = ("task", "n_shot", "metric", "value")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Result:
    """A published evaluation: `value` is in percent."""

    task: str
    n_shot: int
    metric: str
    value: float


@dataclass(frozen=True)
class CatalogueModel:
    """One `[models.NAME]`; exactly one of `path`, `hub` and `recipe` says where its weights come from.

    `output` is the folder of its GGUF files; relative paths were relative to `folder`, the catalogue's, and
    those inside `recipe` still are. `where` is its place in `catalogue`, for messages.
    """

    name: str
    title: str
    where: str
    catalogue: Path
    folder: Path
    output: Path
    path: Path | None = None
    hub: str | None = None
    recipe: dict[str, Any] | None = None
    description: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    size_label: str | None = None
    n_params: int | None = None
    prompts_by: str | None = None
    results: tuple[Result, ...] = ()

    @property
    def average(self) -> float | None:
        """The mean of the published results, in percent; None without results."""
        return sum(result.value for result in self.results) / len(self.results) if self.results else None


@dataclass(frozen=True)
class Catalogue:
    """A checked models.toml: its models by name, and which one is meant when none is named."""

    file: Path
    models: dict[str, CatalogueModel]
    default: str | None = None

    def model(self, name: str | None = None) -> CatalogueModel:
        """Return a model by name, or the default. Raises CatalogueError naming the known ones."""
        if name is None and self.default is None:
            known = ", ".join(self.models)
            raise CatalogueError(f'{self.file}: no model named and no `default = "..."`; known: {known}')
        wanted = name if name is not None else str(self.default)
        if wanted not in self.models:
            raise CatalogueError(f"no model {wanted!r} in {self.file}; known: {nearest_first(wanted, self.models)}")
        return self.models[wanted]


def nearest_first(word: str, known: Iterable[str]) -> str:
    """Return the known words as a list in words, those most like `word` first."""
    ranked = sorted(known, key=lambda one: -difflib.SequenceMatcher(None, word.lower(), one.lower()).ratio())
    return ", ".join(ranked)


def read_catalogue(file: Path) -> Catalogue:
    """Read and check a catalogue. Raises CatalogueError naming file, line and what to do."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogueError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except OSError as error:
        raise CatalogueError(f"{file}: cannot be read: {error.strerror}") from None
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise CatalogueError(_toml_message(file, text, str(error))) from None
    except RecursionError:
        raise CatalogueError(f"{file}: nested too deeply to be a catalogue") from None
    return _Checker(Path(file), locate_keys(text)).catalogue(document)


def _toml_message(file: Path, text: str, message: str) -> str:
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    if not place:
        return f"{file}: {message}"
    line = place[1] or str(len(text.splitlines()))
    return f"{file}:{line}: {message[: place.start()]}" + (f" (column {place[2]})" if place[2] else "")


def locate_keys(text: str) -> dict[KeyPath, int]:
    """Return the line of each table and key of a valid TOML text, by path: ("models", "x", "experts", 0).

    tomllib keeps no positions, but each statement is TOML by itself: lines are taken together until they
    parse, which also steps over strings and arrays of several lines.
    """
    lines: dict[KeyPath, int] = {}
    counts: dict[KeyPath, int] = {}
    table: KeyPath = ()
    statement, start = "", 1
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        start = start if statement else number
        statement += line
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        header = statement.lstrip().startswith("[")
        path = _deepest(parsed, () if header else table, counts if header else {}, header)
        if header:
            if statement.lstrip().startswith("[["):
                counts[path] = counts.get(path, -1) + 1
                path = (*path, counts[path])
            table = path
        for depth in range(1, len(path) + 1):
            lines.setdefault(path[:depth], start)
        statement = ""
    return lines


def _deepest(parsed: Any, path: KeyPath, counts: dict[KeyPath, int], header: bool) -> KeyPath:
    """Return the path that a statement's key names; headers go on in the last item of arrays of tables."""
    while isinstance(parsed, dict) and len(parsed) == 1:
        key = next(iter(parsed))
        parsed, path = parsed[key], (*path, key)
        if not header and not isinstance(parsed, dict):
            break
        if isinstance(parsed, dict) and path in counts:
            path = (*path, counts[path])
    return path


class _Checker:
    """Checks a parsed catalogue; knows the lines, so that every complaint has one."""

    def __init__(self, file: Path, lines: dict[KeyPath, int]) -> None:
        self.file, self.lines, self.folder = file, lines, file.parent

    def fail(self, path: KeyPath, message: str) -> NoReturn:
        """Raise the error for what is wrong at `path`; the nearest line above it is named."""
        while path and path not in self.lines:
            path = path[:-1]
        raise CatalogueError(f"{self.file}:{self.lines.get(path, 1)}: {message}")

    def known(self, table: dict[str, Any], allowed: Iterable[str], path: KeyPath, what: str) -> None:
        """Refuse keys that are not allowed, naming the nearest that is."""
        for key in table:
            if key not in allowed:
                near = difflib.get_close_matches(key.lower(), allowed, 1, 0.5)
                advice = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(allowed)}"
                self.fail((*path, key), f"unknown key {key!r} in {what}; {advice}")

    def value(self, value: Any, kind: "Kind", path: KeyPath) -> Any:
        """Return a value that is of this kind, converted."""
        fits, expected, convert = kind
        if not fits(value):
            self.fail(path, f"{path[-1]!r} must be {expected}, not {_shown(value)}")
        return convert(value)

    def catalogue(self, document: dict[str, Any]) -> Catalogue:
        """Check the whole document."""
        self.known(document, ("default", "models"), (), "the catalogue")
        tables = document.get("models", {})
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            self.fail(("models",), "'models' must hold one table per model: [models.NAME]")
        if not tables:
            self.fail(("models",), "no model; add one as [models.NAME]")
        models = {name: self.model(name, table) for name, table in tables.items()}
        self.separate_outputs(models)
        default = document.get("default")
        if default is not None and default not in list(models):
            known = nearest_first(str(default), models)
            self.fail(("default",), f"default {default!r} is not a model of this catalogue; known: {known}")
        return Catalogue(self.file, models, default)

    def model(self, name: str, table: dict[str, Any]) -> CatalogueModel:
        """Check one `[models.NAME]`."""
        path: KeyPath = ("models", name)
        if not NAME.fullmatch(name):
            self.fail(path, f"model name {name!r} may hold only letters, digits, '.', '_' and '-'")
        self.known(table, (*FIELDS, "results", *RECIPE_KEYS), path, f"[models.{name}]")
        fields = {key: self.value(table[key], kind, (*path, key)) for key, kind in FIELDS.items() if key in table}
        recipe = {key: table[key] for key in table if key in RECIPE_KEYS}
        self.one_source(table, recipe, path)
        for key in ("path", "output"):
            if key in fields:
                fields[key] = self.folder / fields[key]
        fields.setdefault("title", name)
        fields.setdefault("output", self.folder / "gguf" / name)
        fields["where"] = f"{self.file}:{self.lines.get(path, 1)}"
        fields["results"] = self.results(table.get("results", []), (*path, "results"))
        return CatalogueModel(name=name, catalogue=self.file, folder=self.folder, recipe=recipe or None, **fields)

    def one_source(self, table: dict[str, Any], recipe: dict[str, Any], path: KeyPath) -> None:
        """Demand exactly one of path, hub and a recipe with its two necessary fields."""
        given = [key for key in ("path", "hub") if key in table] + (["base_model"] if recipe else [])
        if not given:
            self.fail(path, f"{path[-1]!r} has no source; add path, hub, or a recipe (base_model and experts)")
        if len(given) > 1:
            other = next(iter(recipe)) if recipe else given[1]
            self.fail((*path, other), f"{path[-1]!r} has both {given[0]!r} and {other!r}; keep one source")
        for key in ("base_model", "experts"):
            if recipe and key not in recipe:
                self.fail(path, f"the recipe of {path[-1]!r} has no {key!r}")

    def results(self, rows: Any, path: KeyPath) -> tuple[Result, ...]:
        """Check the published results."""
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            self.fail(path, "'results' must be a list of tables { task, n_shot, metric, value }")
        checked = []
        for i, row in enumerate(rows):
            self.known(row, RESULT_KEYS, (*path, i), "a result")
            for key in RESULT_KEYS:
                if key not in row:
                    self.fail((*path, i), f"result {i + 1} of {path[1]!r} has no {key!r}")
            checked.append(Result(*(self.value(row[key], RESULTS[key], (*path, i, key)) for key in RESULT_KEYS)))
        return tuple(checked)

    def separate_outputs(self, models: dict[str, CatalogueModel]) -> None:
        """Demand a folder of GGUF files for each model: a file in it is known to be that model's."""
        owners: dict[Path, str] = {}
        for name, model in models.items():
            owner = owners.setdefault(model.output.absolute(), name)
            if owner != name:
                message = f"{name!r} and {owner!r} have the same output folder {model.output}"
                self.fail(("models", name, "output"), f"{message}; give each its own")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _is_words(value: Any) -> bool:
    many = value if isinstance(value, list) else [value]
    return all(isinstance(word, str) and word.strip() for word in many)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


Kind = tuple[Callable[[Any], bool], str, Callable[[Any], Any]]
TEXT: Kind = (lambda value: isinstance(value, str) and bool(value.strip()), "a string", str)
WORDS: Kind = (
    _is_words,
    "a string or a list of strings",
    lambda value: tuple(value) if isinstance(value, list) else (value,),
)
COUNT: Kind = (lambda value: type(value) is int and value >= 0, "a whole number, 0 or more", int)
NUMBER: Kind = (_is_number, "a number", float)
HUB: Kind = (
    lambda value: isinstance(value, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", value) is not None,
    'a hub id such as "OWNER/NAME"',
    str,
)
FIELDS: dict[str, Kind] = {
    "title": TEXT,
    "path": TEXT,
    "hub": HUB,
    "output": TEXT,
    "description": TEXT,
    "license": TEXT,
    "language": WORDS,
    "tags": WORDS,
    "datasets": WORDS,
    "size_label": TEXT,
    "n_params": COUNT,
    "prompts_by": TEXT,
}
RESULTS: dict[str, Kind] = {"task": TEXT, "n_shot": COUNT, "metric": TEXT, "value": NUMBER}
