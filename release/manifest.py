"""manifest.json: what a release folder holds, of what and how it was made, and what was measured of it.

Every number and name on the card comes from here. The classes are the schema (docs/release.md lists the keys): a field
is a key of the JSON, None and empty are left out. Nothing in it is a time, a host or a folder of this machine: the same
inputs give the same bytes, but for `speed`, which a stopwatch found and which is left out on request.

Long because the schema is one thing.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..formats.errors import ReleaseError

MANIFEST = "manifest.json"
FORMAT = "moe-gguf release 1"
T = TypeVar("T")


@dataclass(frozen=True)
class HashedFile:
    """A file: its name (in the release folder, or in its model's repository), bytes, SHA-256 in hexadecimal digits."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceModel:
    """A model that weights were read from: as the recipe or the user names it, its hub id, and the files read."""

    name: str
    files: tuple[HashedFile, ...]
    repo: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Source:
    """What the files were made of. `kind` is "recipe", "checkpoint", "hub" or "gguf"."""

    kind: str
    name: str
    models: tuple[SourceModel, ...]


@dataclass(frozen=True)
class ExpertFacts:
    """One expert of a merge, and what is routed to it."""

    name: str
    source_model: str
    repo: str | None = None
    positive_prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    positive_texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeFacts:
    """The merge recipe: `file` lies in the folder; with shared experts and gates, if there are any."""

    file: HashedFile
    base_model: str
    gate_mode: str
    experts_per_token: int
    experts: tuple[ExpertFacts, ...]
    base_repo: str | None = None
    shared_experts: tuple[ExpertFacts, ...] = ()
    dtype: str | None = None
    gates: HashedFile | None = None
    findings: tuple[str, ...] = ()
    prompts_by: str | None = None


@dataclass(frozen=True)
class Parameters:
    """Weights: in all, for one token, of the experts, shared; and of as many dense models as there are experts."""

    total: int
    active: int
    experts: int
    shared: int
    dense_models: int | None = None


@dataclass(frozen=True)
class Published:
    """An evaluation as it was published, in percent; not measured here."""

    task: str
    n_shot: int
    metric: str
    value: float


@dataclass(frozen=True)
class Evaluation:
    """A result of lm-evaluation-harness on one file (`model` is its name without .gguf), from 0 to 1."""

    model: str
    task: str
    n_shot: int
    metric: str
    value: float
    error: float | None = None


@dataclass(frozen=True)
class ModelFacts:
    """What the model is. `template` is the kind of its chat template, `prompt` what that makes of a system prompt and a
    question, `system` what it says where none is given; `repo` is where it will be published.
    """

    name: str
    title: str
    architecture: str
    parameters: Parameters
    n_layer: int
    n_ctx_train: int | None = None
    n_expert: int = 0
    n_expert_used: int = 0
    size_label: str | None = None
    license: str | None = None
    language: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    description: str | None = None
    base_models: tuple[str, ...] = ()
    base_model_relation: str | None = None
    quantized_by: str | None = None
    repo: str | None = None
    template: str | None = None
    prompt: str | None = None
    system: str | None = None
    published: tuple[Published, ...] = ()


@dataclass(frozen=True)
class Calibration:
    """What importance came from: texts (none is the one that ships), and the model file that they went through."""

    texts: tuple[HashedFile, ...]
    shipped_text: bool
    imatrix: HashedFile | None = None
    moments: HashedFile | None = None
    model: str | None = None
    n_ctx: int | None = None
    n_chunk: int | None = None
    least_tokens: int | None = None


@dataclass(frozen=True)
class Options:
    """The options that, with the sources, remake every byte."""

    types: tuple[str, ...]
    rounding: str
    split_max_size: int
    tensor_types: tuple[str, ...] = ()
    pre_tokenizer: str | None = None
    catalogue: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """Divergence from the reference on the held-out texts: nats, shares from 0 to 1, each ± its standard error."""

    ppl: float
    ppl_error: float
    kld: float
    kld_error: float
    same_top: float
    same_top_error: float
    kld_p99: float
    routing: float | None = None
    kld_by_text: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Room:
    """Bytes of memory with `n_ctx` tokens of context: all on the CPU; and with the experts there, the rest on a GPU."""

    n_ctx: int
    ram: int
    split_ram: int | None = None
    split_vram: int | None = None


@dataclass(frozen=True)
class Fit:
    """How a file runs on a usual machine: whether it fits, the longest context, llama.cpp's flags."""

    machine: str
    fits: bool
    n_ctx: int | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """A usual machine: bytes of memory and of its GPU's, and how much of them a model is given."""

    name: str
    ram: int
    vram: int = 0
    ram_given: int = 0
    vram_given: int = 0


@dataclass(frozen=True)
class ReleasedFile:
    """One quantization: `name` is its file, or its first shard; `files` are all of them; `mix` is tensor to type."""

    name: str
    type: str
    bytes: int
    bits_per_weight: float
    files: tuple[HashedFile, ...]
    mix: Mapping[str, str]
    quality: Quality | None = None
    room: tuple[Room, ...] = ()
    fits: tuple[Fit, ...] = ()
    fallen_back: tuple[str, ...] = ()
    modelfile: str | None = None

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of its file; None of several shards."""
        return self.files[0].sha256 if len(self.files) == 1 else None


@dataclass(frozen=True)
class OtherFile:
    """Another publisher's file of the same model, measured against the same reference."""

    name: str
    bytes: int
    bits_per_weight: float
    files: tuple[HashedFile, ...]
    type: str | None = None
    quality: Quality | None = None


@dataclass(frozen=True)
class Reference:
    """What all divergences are from. `noise_floor` is its divergence from its own stored predictions."""

    type: str
    file: HashedFile
    ppl: float
    n_ctx: int
    n_chunk: int
    n_token: int
    noise_floor: float | None = None
    why: str | None = None
    texts: tuple[HashedFile, ...] = ()


@dataclass(frozen=True)
class TextRoutes:
    """The share of each expert, from 0 to 1, in the tokens of one text: over all layers, and layer by layer."""

    text: str
    n_token: int
    shares: tuple[float, ...]
    layers: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RoutesFacts:
    """Where the tokens of the held-out texts go."""

    experts: tuple[str, ...]
    layers: tuple[int, ...]
    texts: tuple[TextRoutes, ...]


@dataclass(frozen=True)
class Judgement:
    """What is said in words of a file that agrees with the reference's likeliest token at least so often (0 to 1)."""

    same_top: float
    words: str


@dataclass(frozen=True)
class FileSpeed:
    """Tokens a second of one file: of the text that was read, and generated."""

    prompt: float
    generated: float | None = None


@dataclass(frozen=True)
class Speed:
    """What a stopwatch found, on which machine; the only part that differs between two runs."""

    machine: str
    n_threads: int
    files: Mapping[str, FileSpeed]


@dataclass(frozen=True)
class Manifest:
    """All of it. `others` are the folder's other files, but for those that are made of the manifest itself."""

    model: ModelFacts
    programs: Mapping[str, str]
    source: Source
    options: Options
    files: tuple[ReleasedFile, ...]
    recipe: RecipeFacts | None = None
    calibration: Calibration | None = None
    reference: Reference | None = None
    against: tuple[OtherFile, ...] = ()
    machines: tuple[Machine, ...] = ()
    routes: RoutesFacts | None = None
    evaluations: tuple[Evaluation, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    speed: Speed | None = None
    others: tuple[HashedFile, ...] = ()
    format: str = FORMAT

    @property
    def listed(self) -> tuple[HashedFile, ...]:
        """Every file of the folder that the manifest has the hash of."""
        return (*(part for file in self.files for part in file.files), *self.others)


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write manifest.json into a folder; the same manifest gives the same bytes. Returns its path."""
    path = folder / MANIFEST
    partial = path.with_name(path.name + ".partial")
    partial.write_text(manifest_text(manifest), encoding="utf-8")
    partial.replace(path)
    return path


def manifest_text(manifest: Manifest) -> str:
    """Return the JSON, indented, keys in the order of the classes."""
    return json.dumps(plain(manifest), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.json, or that of a folder. Keys that are not known are skipped: they are of a later version.

    Raises ReleaseError when it is none, or says something else than its schema allows.
    """
    path = path / MANIFEST if path.is_dir() else path
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReleaseError(f"{path}: no such file; a release folder has one (moe-gguf release writes it)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ReleaseError(f"{path}: cannot be read: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReleaseError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise ReleaseError(f"{path}: not a manifest of {FORMAT!r}, but {found!r}; another version of moe-gguf made it")
    return parsed(Manifest, document, str(path))


def plain(value: Any) -> Any:
    """Return dataclasses as JSON has them: None and what is empty are left out, floats have six digits."""
    if is_dataclass(value):
        pairs = ((one.name, plain(getattr(value, one.name))) for one in fields(value))
        return {key: found for key, found in pairs if found is not None and found != [] and found != {}}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def parsed(kind: type[T], value: Any, where: str) -> T:
    """Return `value`, as JSON gave it, as a `kind`. Raises ReleaseError with the place of what does not fit."""
    return _parsed(kind, value, where)


def _parsed(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin is UnionType:
        if value is None:
            return None
        return _parsed(next(one for one in get_args(kind) if one is not NoneType), value, where)
    if origin is tuple:
        _demand(isinstance(value, list), value, "a list", where)
        return tuple(_parsed(get_args(kind)[0], one, f"{where}[{number}]") for number, one in enumerate(value))
    if is_dataclass(kind) and isinstance(kind, type):
        _demand(isinstance(value, dict), value, "an object", where)
        return _object(kind, value, where)
    if origin is not None and issubclass(origin, Mapping):
        _demand(isinstance(value, dict), value, "an object", where)
        return {key: _parsed(get_args(kind)[1], one, f"{where}.{key}") for key, one in value.items()}
    if kind is Any:
        return value
    if kind is float:
        _demand(isinstance(value, (int, float)) and not isinstance(value, bool), value, "a number", where)
        return float(value)
    _demand(type(value) is kind, value, f"of type {getattr(kind, '__name__', kind)}", where)
    return value


def _object(kind: type[Any], value: Mapping[str, Any], where: str) -> Any:
    hints, found = get_type_hints(kind), {}
    for one in fields(kind):
        if one.name in value:
            found[one.name] = _parsed(hints[one.name], value[one.name], f"{where}: {one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            if get_origin(hints[one.name]) is tuple:
                found[one.name] = ()
            elif get_origin(hints[one.name]) is not None and not is_dataclass(hints[one.name]):
                found[one.name] = {}
            else:
                raise ReleaseError(f"{where}: has no {one.name!r}")
    return kind(**found)


def _demand(fits: bool, value: Any, expected: str, where: str) -> None:
    if not fits:
        raise ReleaseError(f"{where} must be {expected}, not {str(value)[:40]!r}")
