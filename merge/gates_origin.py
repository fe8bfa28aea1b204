"""What gates are computed from, as digests: a recipe with its models comes in, a few notes for the gates file go out.

A file whose notes differ holds the routers of another recipe. What moves no router is left out: the folders that models
lie in, names, the order of tensors in a file.
"""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..formats.errors import RecipeError
from ..formats.source import TensorSource
from .models import DenseModel
from .recipe import RANDOM_MODES, Expert, ModelReference, Recipe, find_text

PREFIX = "from "
# What a prompt's tokens depend on (merge/prompts.py).
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def gates_origin(recipe: Recipe, models: Mapping[ModelReference, DenseModel], gate_base: str | None) -> dict[str, str]:
    """Return what the gates of a recipe are computed from, as notes: a digest or a word for each thing.

    `gate_base` None is whatever type the base is run in. Reads some rows of each model; raises CheckpointError.
    """
    mode = recipe.gate_mode.replace("hidden_last", "hidden")
    notes = {"gate_mode": mode}
    if mode in RANDOM_MODES:
        return _prefixed(notes | {"seed": str(recipe.seed)})
    base = models[recipe.base_model]
    notes["base"] = _digest(_weights(base), *map(_content, (base.checkpoint.folder / name for name in TOKENIZER_FILES)))
    if gate_base and mode != "cheap_embed":
        notes["gate_base"] = gate_base.lower()
    prompted = [("expert", recipe.experts)]
    if any(expert.positive_prompts for expert in recipe.shared_experts):
        prompted.append(("shared expert", recipe.shared_experts))
    for kind, experts in prompted:
        for number, expert in enumerate(experts):
            notes[f"{kind} {number}"] = _digest(*_words(recipe, expert, mode))
            if mode == "calibrated" and kind == "expert":
                notes[f"weights of {kind} {number}"] = _digest(_weights(models[expert.source_model]), _scales(expert))
    if mode == "calibrated":
        notes["experts_per_token"] = str(recipe.experts_per_token)
    return _prefixed(notes)


def check_origin(path: Path, found: Mapping[str, Any], recipe: Recipe, origin: Mapping[str, str]) -> str | None:
    """Compare the notes of a gates file with what the recipe's gates would be computed from.

    Returns a warning for a file of a recipe that does not say what it was computed from, as they were written once;
    None for gates that match, or that no recipe made (calibrate's). Raises RecipeError for those of another recipe.
    """
    again = "remove it to compute them again, or name another file with --gates (moe-gguf regate swaps any gates in)"
    if not any(key.startswith(PREFIX) for key in found):
        if "gate_mode" not in found:
            return None
        return f"{path}: does not say what its gates were computed from; if the recipe changed since, {again}"
    for key, value in origin.items():
        if found.get(key) != value:
            raise RecipeError(f"{path}: gates of another recipe: {_in_words(key, found, value, recipe)}; {again}")
    if extra := [key for key in found if key.startswith(f"{PREFIX}expert ") and key not in origin]:
        raise RecipeError(f"{path}: gates of another recipe: it had {extra[-1].removeprefix(PREFIX)}; {again}")
    return None


def _in_words(key: str, found: Mapping[str, Any], value: str, recipe: Recipe) -> str:
    what = key.removeprefix(PREFIX)
    if what in ("gate_mode", "gate_base", "seed", "experts_per_token"):
        return f"{what} was {found.get(key, 'another')}, is {value}"
    if what == "base":
        return "its base's weights or tokenizer differ"
    kind, _, number = what.rpartition(" ")
    experts = recipe.shared_experts if "shared" in kind else recipe.experts
    thing = "the weights" if kind.startswith("weights") else "the prompts or texts"
    return f"{thing} of expert {experts[int(number)].name} differ"


def _prefixed(notes: Mapping[str, str]) -> dict[str, str]:
    return {PREFIX + key: value for key, value in notes.items()}


def _words(recipe: Recipe, expert: Expert, mode: str) -> list[bytes]:
    """Return the prompts of an expert, and for calibration the texts that take their place, in order."""
    if mode == "calibrated" and expert.positive_texts:
        paths = [find_text(recipe, name) for name in expert.positive_texts]
        return [_content(path) if path else b"" for path in paths]
    positive = [prompt.encode("utf-8", "surrogatepass") for prompt in expert.positive_prompts]
    negative = [prompt.encode("utf-8", "surrogatepass") for prompt in expert.negative_prompts]
    return [*positive, b"\0negative\0", *negative]


def _scales(expert: Expert) -> bytes:
    return repr((expert.noise_scale, expert.residual_scale)).encode()


def _weights(model: DenseModel) -> bytes:
    """Return a digest of the first row of every tensor: training, merging and rounding change at least one of them."""
    sources = [model.checkpoint.source] + ([model.lora.source] if model.lora else [])
    parts: list[bytes] = []
    for source in sources:
        parts += _first_rows(source)
    if model.lora:
        parts.append(repr(sorted(model.lora.factors.items())).encode())
    return _digest(*parts).encode()


def _first_rows(source: TensorSource) -> list[bytes]:
    parts: list[bytes] = []
    for name in sorted(source.tensors):
        info = source.tensors[name]
        rows = source.read_rows(name, 0, min(1, info.n_rows))
        parts += [f"{name} {info.dtype} {info.shape}".encode(), rows.tobytes()]
    return parts


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _digest(*parts: bytes) -> str:
    state = blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()
