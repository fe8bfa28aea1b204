"""Router vectors: prompts, as embeddings or hidden states of the base, come in; one vector a layer and expert goes out.

The formulas are mergekit 0.1.5's (moe/router.py). Hidden states are passed in as arrays: who makes them is no matter.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..formats.errors import RecipeError
from .recipe import Expert, Recipe

ROUTER = "blk.{layer}.ffn_gate_inp.weight"
SHARED_ROUTER = "blk.{layer}.ffn_gate_inp_shexp.weight"
DEGENERATE = 5.0

# A prompt's tokens to one vector a layer: [n_layer, n_embd].
Represent = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Gates:
    """The routers of a mixture: float32 [n_layer, n_expert, n_embd]; `shared` the shared experts' own gates."""

    routers: np.ndarray
    shared: np.ndarray | None = None


def prompted_gates(experts: Sequence[Expert], represent: Represent, shared: Sequence[Expert] = ()) -> Gates:
    """Return gates from prompts: the mean of the positive ones less that of the negative ones, of length 1.

    `represent` gives a prompt's vector in every layer. Source: get_gate_params in mergekit's moe/router.py.
    """
    every = np.stack([_direction(expert, represent) for expert in (*experts, *shared)], axis=1)
    n_expert = len(experts)
    return Gates(every[:, :n_expert], every[:, n_expert:] if shared else None)


def from_hidden(states: Callable[[str], np.ndarray], average: bool) -> Represent:
    """Return how `hidden` (the last token's state, also called hidden_last) or `hidden_avg` represents a prompt.

    `states` gives the inputs of the base's layers, [n_layer, n_token, n_embd]: the embeddings for layer 0, the output
    of layer N - 1 for layer N. mergekit's mean over a batch of prompts also runs over its padding; this one does not.
    """

    def represent(prompt: str) -> np.ndarray:
        layers = states(prompt)
        return layers.mean(axis=1, dtype=np.float64) if average else layers[:, -1].astype(np.float64)

    return represent


def cheap_embed_gates(
    experts: Sequence[Expert],
    tokens: Callable[[str], Sequence[int]],
    embedding: Callable[[int], np.ndarray],
    n_layer: int,
    shared: Sequence[Expert] = (),
) -> Gates:
    """Return gates from the sum of the prompts' token embeddings, the same in every layer.

    `embedding` gives a token's row. Source: get_cheap_embedding in mergekit's moe/router.py.
    """

    def mean(prompts: Sequence[str]) -> np.ndarray:
        rows = [embedding(token).astype(np.float64) for prompt in prompts for token in tokens(prompt)]
        return _normalized(np.sum(rows, axis=0)) if rows else np.zeros_like(embedding(0), np.float64)

    vectors = []
    for expert in (*experts, *shared):
        vector = mean(expert.positive_prompts)
        if expert.negative_prompts:
            vector = vector - mean(expert.negative_prompts)
        vectors.append(_normalized(vector).astype(np.float32))
    every = np.repeat(np.stack(vectors)[None], n_layer, axis=0)
    return Gates(every[:, : len(experts)], every[:, len(experts) :] if shared else None)


def random_gates(recipe: Recipe, n_layer: int, n_embd: int) -> Gates:
    """Return gates drawn with the recipe's seed: normal for `random`, else uniform as torch.nn.Linear starts."""
    n_expert, n_shared = len(recipe.experts), len(recipe.shared_experts)
    shape = (n_layer, n_expert + n_shared, n_embd)
    generator = np.random.default_rng(recipe.seed)
    if recipe.gate_mode == "random":
        every = generator.standard_normal(shape, np.float32)
    else:
        bound = np.float32(1 / np.sqrt(n_embd))
        every = generator.random(shape, np.float32) * 2 * bound - bound
    return Gates(every[:, :n_expert], every[:, n_expert:] if n_shared else None)


def zero_gates(recipe: Recipe, n_layer: int, n_embd: int) -> Gates:
    """Return gates of the right shape that say nothing, for what is looked at before gates are computed."""
    n_shared = len(recipe.shared_experts)
    shared = np.zeros((n_layer, n_shared, n_embd), np.float32) if n_shared else None
    return Gates(np.zeros((n_layer, len(recipe.experts), n_embd), np.float32), shared)


def condition_numbers(gates: Gates) -> np.ndarray:
    """Return each layer's condition number; above DEGENERATE the experts' vectors are too much alike."""
    return np.linalg.cond(gates.routers.astype(np.float64))


def describe_degenerate(gates: Gates) -> str | None:
    """Return one line about the layers whose routers are degenerate, or None."""
    numbers = condition_numbers(gates)
    layers = np.flatnonzero(numbers > DEGENERATE)
    if not len(layers):
        return None
    which = "every layer" if len(layers) == len(numbers) else "layers " + ", ".join(map(str, layers))
    return (
        f"routers of {which} are degenerate (condition number up to {numbers.max():.1f}, more than {DEGENERATE:.0f}): "
        "the prompts are too much alike, and some experts will be used little"
    )


def check_gates(gates: Gates, n_layer: int, n_expert: int, n_embd: int, n_shared: int, where: str) -> None:
    """Raise RecipeError when gates are of another model's shape or not finite."""
    expected = (n_layer, n_expert, n_embd)
    if gates.routers.shape != expected:
        raise RecipeError(f"{where}: gates are {list(gates.routers.shape)}, the mixture needs {list(expected)}")
    if n_shared and (gates.shared is None or gates.shared.shape != (n_layer, n_shared, n_embd)):
        raise RecipeError(f"{where}: no gates for the {n_shared} shared experts; compute the gates again")
    if not np.isfinite(gates.routers).all():
        raise RecipeError(f"{where}: gates are not all finite; compute them again")


def save_gates(path: Path, gates: Gates, notes: Mapping[str, str]) -> None:
    """Write gates as safetensors under GGUF's names, in F32; `notes` become its metadata, in their order."""
    from ..formats.safetensors import pack_header
    from ..formats.source import TensorInfo

    tensors = {ROUTER.format(layer=i): router for i, router in enumerate(gates.routers)}
    if gates.shared is not None:
        tensors |= {SHARED_ROUTER.format(layer=i): shared for i, shared in enumerate(gates.shared)}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        infos = [TensorInfo(name, "F32", array.shape, path.name) for name, array in sorted(tensors.items())]
        file.write(pack_header(infos, notes))
        for info in infos:
            file.write(np.ascontiguousarray(tensors[info.name], "<f4").tobytes())
    partial.replace(path)


def gates_notes(path: Path) -> dict[str, Any]:
    """Return the metadata of a gates file. Raises CheckpointError when it is no safetensors file."""
    from ..formats.safetensors import SafetensorsFile

    return SafetensorsFile(path).metadata


def load_gates(path: Path) -> Gates:
    """Read gates that `save_gates` wrote.

    Raises CheckpointError when it is no safetensors file, RecipeError when it has no routers.
    """
    from ..formats.safetensors import SafetensorsFile

    file = SafetensorsFile(path)

    def stacked(pattern: str) -> np.ndarray | None:
        rows = []
        while (name := pattern.format(layer=len(rows))) in file.tensors:
            info = file.tensors[name]
            if info.dtype != "F32" or len(info.shape) != 2:
                raise RecipeError(f"{path}: {name} is {info.dtype} {list(info.shape)}; routers are F32 matrices")
            rows.append(file.read_rows(name, 0, info.n_rows))
        if len({row.shape for row in rows}) > 1:
            raise RecipeError(f"{path}: routers differ in shape")
        return np.stack(rows) if rows else None

    routers = stacked(ROUTER)
    if routers is None:
        raise RecipeError(f"{path}: no {ROUTER.format(layer=0)}; is it a file of gates?")
    return Gates(routers, stacked(SHARED_ROUTER))


def _direction(expert: Expert, represent: Represent) -> np.ndarray:
    def mean(prompts: Sequence[str]) -> np.ndarray:
        return np.mean([represent(prompt) for prompt in prompts], axis=0)

    vector = mean(expert.positive_prompts)
    if expert.negative_prompts:
        vector = vector - mean(expert.negative_prompts)
    return _normalized(vector).astype(np.float32)


def _normalized(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)
