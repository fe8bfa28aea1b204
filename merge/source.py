"""A merge that is read as if it were there: dense models and gates come in, the mixture's tensors go out row by row.

Nothing is read until rows are asked for, and no more than those rows of the models they come from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import prod

import numpy as np

from ..formats.errors import CheckpointError, RecipeError
from ..formats.floats import to_bf16, widen
from ..formats.source import TensorInfo
from ..formats.weight_files import missing_tensor
from .families import PARTS, Layout, MixtureKind
from .gates import Gates
from .lora import change
from .models import DenseModel
from .recipe import Expert, ModelReference, Recipe

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a tensor: how many, where they come from, and how rows [start, stop) of them are read."""

    n_rows: int
    where: str
    read: Callable[[int, int], np.ndarray]


class MergedSource:
    """The TensorSource of a merge: every tensor is a sequence of parts, made of `ingredients`."""

    def __init__(
        self,
        ingredients: "Ingredients",
        tensors: Mapping[str, TensorInfo],
        parts: Mapping[str, tuple[Part, ...]],
        identity: Mapping[str, str],
    ) -> None:
        self.ingredients = ingredients
        self.tensors = tensors
        self._parts = parts
        self._identity = identity

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        found, at = [], 0
        for part in self._parts[name]:
            low, high = max(start - at, 0), min(stop - at, part.n_rows)
            if low < high:
                found.append(part.read(low, high))
            at += part.n_rows
        return found[0] if len(found) == 1 else np.concatenate(found)

    def identity(self) -> Mapping[str, str]:
        """Return the identity of every model that is read, of the recipe and of the gates."""
        return self._identity


@dataclass(frozen=True)
class Sizes:
    """What the base's config.json says of its shapes."""

    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int

    def mlp(self, part: str) -> tuple[int, int]:
        """Return the shape of an MLP matrix."""
        return (self.n_embd, self.n_ff) if part == "down_proj" else (self.n_ff, self.n_embd)


@dataclass(frozen=True)
class Ingredients:
    """All that a merge is made of; `dtype` is the output's ("BF16"), None keeps each tensor's own."""

    recipe: Recipe
    family: MixtureKind
    layout: Layout
    models: Mapping[ModelReference, DenseModel]
    gates: Gates
    sizes: Sizes
    dtype: str | None

    @property
    def base(self) -> DenseModel:
        """The model that attention, norms and embeddings come from."""
        return self.models[self.recipe.base_model]


def merged_source(of: Ingredients) -> MergedSource:
    """Return the mixture's tensors in the order of its layers; reads no weight.

    Raises CheckpointError for a missing tensor, RecipeError for experts of another shape than the base.
    """
    parts: dict[str, tuple[Part, ...]] = {}
    tensors: dict[str, TensorInfo] = {}

    def add(name: str, dtype: str, shape: tuple[int, ...], made_of: tuple[Part, ...]) -> None:
        parts[name] = made_of
        tensors[name] = TensorInfo(name, dtype, shape, made_of[0].where)

    def copy(name: str) -> None:
        info = _info(of.base, name)
        add(name, of.dtype or info.dtype, info.shape, (_dense_part(of.base, name, of.dtype),))

    copy("model.embed_tokens.weight")
    for layer in range(of.sizes.n_layer):
        prefix = f"model.layers.{layer}."
        for name in of.family.layer_tensors:
            if name in of.family.biases_wanted and prefix + name not in of.base.checkpoint.source.tensors:
                n_rows = (of.sizes.n_head if "q_proj" in name else of.sizes.n_head_kv) * of.sizes.head_dim
                zeros = np.zeros((1, n_rows), np.float32)
                add(prefix + name, of.dtype or "F32", (n_rows,), (_array_part(zeros, of.dtype, "zeros"),))
            else:
                copy(prefix + name)
        for entry in _router_tensors(of, layer):
            add(*entry)
        for entry in _expert_tensors(of, layer):
            add(*entry)
    copy("model.norm.weight")
    if "lm_head.weight" in of.base.checkpoint.source.tensors or not of.base.checkpoint.config.get(
        "tie_word_embeddings"
    ):
        copy("lm_head.weight")
    return MergedSource(of, tensors, parts, _identity(of))


Entry = tuple[str, str, tuple[int, ...], tuple[Part, ...]]


def _router_tensors(of: Ingredients, layer: int) -> list[Entry]:
    prefix = f"model.layers.{layer}."
    routers = [(of.layout.router, of.gates.routers[layer])]
    if of.family.shared_gate and of.gates.shared is not None:
        routers.append((of.family.shared_gate, of.gates.shared[layer]))
    return [
        (prefix + name, of.dtype or "F32", router.shape, (_array_part(router, of.dtype, "the gates"),))
        for name, router in routers
    ]


def _expert_tensors(of: Ingredients, layer: int) -> list[Entry]:
    """Return the experts of a layer by the names of the layout."""
    prefix = f"model.layers.{layer}."
    parts = {part: [_expert_part(of, layer, e, part) for e in of.recipe.experts] for part in PARTS}
    entries: list[Entry] = []
    if of.layout.experts is None:
        gate_up = [part for pair in zip(parts["gate_proj"], parts["up_proj"], strict=True) for part in pair]
        dtype = of.dtype or _shared_dtype(of, layer)
        for name, rows, n_parts in ((of.layout.gate_up, gate_up, 2), (of.layout.down, parts["down_proj"], 1)):
            n_rows, row_length = of.sizes.mlp("gate_proj" if n_parts == 2 else "down_proj")
            shape = (len(of.recipe.experts), n_parts * n_rows, row_length)
            entries.append((prefix + name, dtype, shape, tuple(rows)))
    else:
        for index, expert in enumerate(of.recipe.experts):
            for part, name in of.layout.experts.items():
                dtype = of.dtype or _mlp_info(of, layer, expert, part).dtype
                shape = of.sizes.mlp(part)
                entries.append((prefix + name.format(expert=index), dtype, shape, (parts[part][index],)))
    for expert in of.recipe.shared_experts:
        for part in PARTS:
            dtype = of.dtype or _mlp_info(of, layer, expert, part).dtype
            name = prefix + of.family.shared_expert.format(part=part)
            entries.append((name, dtype, of.sizes.mlp(part), (_expert_part(of, layer, expert, part),)))
    return entries


def _shared_dtype(of: Ingredients, layer: int) -> str:
    """Return the one dtype of a layer's experts, which a fused tensor needs when the recipe names none."""
    dtypes = {_mlp_info(of, layer, expert, part).dtype for expert in of.recipe.experts for part in PARTS}
    if len(dtypes) > 1:
        raise RecipeError(f"{of.recipe.name}: experts are stored as {', '.join(sorted(dtypes))}; name a dtype")
    return dtypes.pop()


def _mlp_info(of: Ingredients, layer: int, expert: Expert, part: str) -> TensorInfo:
    return _info(of.models[expert.source_model], f"model.layers.{layer}.mlp.{part}.weight")


def _expert_part(of: Ingredients, layer: int, expert: Expert, part: str) -> Part:
    info = _mlp_info(of, layer, expert, part)
    if info.shape != of.sizes.mlp(part):
        raise RecipeError(
            f"{of.recipe.name}: expert {expert.name} does not have the base's shape: {info.name} is "
            f"{list(info.shape)}, not {list(of.sizes.mlp(part))}"
        )
    experts = (*of.recipe.experts, *of.recipe.shared_experts)
    key = _noise_key(of.recipe.seed, next(i for i, one in enumerate(experts) if one is expert), info.name)
    return _dense_part(of.models[expert.source_model], info.name, of.dtype, expert, key)


def _info(model: DenseModel, name: str) -> TensorInfo:
    """Return a tensor of a dense model. Raises CheckpointError when it is missing or of another kind of number."""
    info = model.checkpoint.source.tensors.get(name)
    if info is None:
        said = missing_tensor(name, model.checkpoint.source.tensors, model.checkpoint.promised)
        raise CheckpointError(f"{model.checkpoint.folder}: {said}")
    if info.dtype not in FLOATS:
        raise CheckpointError(f"{model.checkpoint.folder}: {name} is {info.dtype}; merges need {', '.join(FLOATS)}")
    return info


def _dense_part(model: DenseModel, name: str, dtype: str | None, expert: Expert | None = None, key: int = 0) -> Part:
    """Return the rows of a dense model's tensor, with its adapter and the expert's edits, in the output's dtype."""
    source, info = model.checkpoint.source, _info(model, name)
    lora = model.lora if model.lora and name in model.lora.factors else None
    noise = expert.noise_scale if expert else None
    scale = expert.residual_scale if expert and name.endswith("down_proj.weight") else None

    label = f"{model.label}: {name}"

    def read(start: int, stop: int) -> np.ndarray:
        rows = source.read_rows(name, start, stop)
        if lora is not None:
            rows = fitting(widen(rows) + change(lora, name, start, stop), info.dtype, label)
        if noise is not None:
            drawn = widen(narrow(_noise(key, start, stop, info.row_length), info.dtype))
            scaled = widen(narrow(drawn * np.float32(noise), info.dtype))
            rows = fitting(widen(rows) + scaled, info.dtype, label)
        if scale is not None:
            rows = fitting(widen(rows) * np.float32(scale), info.dtype, label)
        return rows if dtype in (None, info.dtype) else fitting(widen(rows), dtype, label)

    return Part(info.n_rows, f"{model.checkpoint.folder.name}/{info.where}", read)


def _array_part(values: np.ndarray, dtype: str | None, where: str) -> Part:
    rows = values.reshape(-1, values.shape[-1])
    return Part(len(rows), where, lambda start, stop: fitting(rows[start:stop].copy(), dtype or "F32", where))


def fitting(rows: np.ndarray, dtype: str, label: str) -> np.ndarray:
    """Round float32 rows; RecipeError where F16 cannot hold a number that is there."""
    rounded = narrow(rows, dtype)
    if dtype == "F16" and (lost := np.isinf(rounded) & np.isfinite(rows)).any():
        raise RecipeError(
            f"{label}: {rows[lost].flat[0]:g} is there, and float16 holds nothing beyond 65504; "
            "write dtype: bfloat16 into the recipe"
        )
    return rounded


def narrow(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Round float32 rows to F32, F16 or BF16 (as uint16), to nearest, ties to even, as torch does."""
    if dtype == "BF16":
        return to_bf16(rows)
    with np.errstate(over="ignore"):
        return rows.astype(np.float16 if dtype == "F16" else np.float32, copy=False)


def _noise_key(seed: int, expert: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed} {expert} {name}".encode(), digest_size=8).digest(), "little")


def _noise(key: int, start: int, stop: int, row_length: int) -> np.ndarray:
    """Draw normal noise; every row has its own stream, so that a row's noise does not depend on the range asked for."""
    drawn = np.empty((stop - start, row_length), np.float32)
    for row in range(start, stop):
        stream = np.random.Generator(np.random.Philox(key=np.array([key, row], np.uint64)))
        stream.standard_normal(dtype=np.float32, out=drawn[row - start])
    return drawn


def _identity(of: Ingredients) -> dict[str, str]:
    identity: dict[str, str] = {}
    for model in of.models.values():
        identity |= model.checkpoint.source.identity()
        if model.lora is not None:
            identity |= model.lora.source.identity()
    digest = blake2b(np.ascontiguousarray(of.gates.routers).tobytes(), digest_size=8)
    if of.gates.shared is not None:
        digest.update(np.ascontiguousarray(of.gates.shared).tobytes())
    said = repr(
        (of.recipe.base_model, of.recipe.experts, of.recipe.shared_experts, of.recipe.seed, of.dtype, of.layout)
    )
    return identity | {
        "the recipe": blake2b(said.encode(), digest_size=8).hexdigest(),
        "the gates": f"{prod(of.gates.routers.shape)} values, hash {digest.hexdigest()}",
    }
