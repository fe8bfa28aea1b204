"""Calibration, wired: runner runs texts through a mixture, merge fits its routers to them, regate tries them out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats.errors import MoeGgufError, RecipeError
from .gates import UBATCH, cache_folder, cached_gguf, tapped, write_gguf
from .terminal import detail, progress, say

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..merge.gates import Gates
    from ..merge.open import Models
    from ..merge.recipe import Recipe

ROUTER_INPUT = "ffn_norm-{layer}"
TUNING_TOKENS = 512
SHARPNESSES = (1.0, 0.5, 0.25, 0.125, 0.0625)


@dataclass(frozen=True)
class Text:
    """The tokens of one kind of text, and the expert they are of.

    `fit` are those that routers are fitted to, `tune` those that their sharpness is chosen by, `held_out` those that
    judge the result; no token is in two of them.
    """

    name: str
    expert: int
    fit: tuple[int, ...]
    tune: tuple[int, ...]
    held_out: tuple[int, ...]


def split_texts(
    named: Sequence[tuple[str, int, str]], tokens: Callable[[str], Sequence[int]], n_token: int, n_held_out: int
) -> list[Text]:
    """Tokenize texts (name, expert, content): the first n_token are to fit and to tune, n_held_out at the end to judge.

    A text that is too short for both gives a fifth of itself to judge; a fifth of what is left, and at most 512 tokens,
    tune. Raises MoeGgufError when it is empty.
    """
    texts = []
    for name, expert, content in named:
        ids = list(tokens(content))
        if len(ids) < 2:
            raise MoeGgufError(f"text {name} has {len(ids)} tokens; give more text of that kind")
        held_out = min(n_held_out, len(ids) // 5)
        cut = len(ids) - held_out
        used = ids[:cut][:n_token]
        n_fit = len(used) - min(TUNING_TOKENS, len(used) // 5)
        texts.append(Text(name, expert, tuple(used[:n_fit]), tuple(used[n_fit:]), tuple(ids[cut:])))
    return texts


def windows_of(tokens: Sequence[int], n_ctx: int) -> list[Sequence[int]]:
    """Cut tokens into windows of at most n_ctx."""
    return [tokens[start : start + n_ctx] for start in range(0, len(tokens), n_ctx)]


class RouterInputs:
    """What enters each router for all tokens of the texts: float16 [n_layer, n_token, n_embd] in a temporary file."""

    def __init__(self, gguf: Path, texts: Sequence[Text], n_layer: int, n_embd: int, n_ctx: int) -> None:
        from ..runner.load_options import LoadOptions
        from ..runner.model import Model

        self.labels = np.concatenate([np.full(len(text.fit), text.expert) for text in texts])
        self.texts = np.concatenate([np.full(len(text.fit), i) for i, text in enumerate(texts)])
        self._folder = TemporaryDirectory(prefix="moe-gguf-")
        path = Path(self._folder.name) / "inputs"
        self.states = np.memmap(path, np.float16, "w+", shape=(n_layer, len(self.labels), n_embd))
        at = dict.fromkeys(range(n_layer), 0)
        windows = [window for text in texts for window in windows_of(text.fit, n_ctx)]
        layers = {ROUTER_INPUT.format(layer=layer): layer for layer in range(n_layer)}
        with progress(len(self.labels), "router inputs", " tokens") as bar, Model(gguf, LoadOptions()) as model:

            def keep(name: str, states: np.ndarray) -> None:
                layer = layers[name]
                self.states[layer, at[layer] : at[layer] + len(states)] = states
                at[layer] += len(states)
                bar.update(len(states) if layer == 0 else 0)

            tapped(model, windows, list(layers), keep, n_ctx)
        if any(count != len(self.labels) for count in at.values()):
            raise MoeGgufError(f"{gguf}: llama.cpp's graph of this model has no {ROUTER_INPUT.format(layer=0)}")

    def layer(self, layer: int) -> np.ndarray:
        """Return a layer's inputs as float32 [n_token, n_embd]."""
        return self.states[layer].astype(np.float32)

    def close(self) -> None:
        """Remove the temporary file."""
        del self.states
        self._folder.cleanup()


def fit_gates(
    gguf: Path, texts: Sequence[Text], shape: tuple[int, int, int], n_ctx: int, ridge: float
) -> "tuple[Gates, Mapping[str, Any]]":
    """Fit a model's routers to texts; return them and the report of the fit."""
    from ..merge.calibrate import fit_routers, labels_to_targets, load_of, softmax
    from ..merge.gates import Gates

    n_layer, n_expert, n_embd = shape
    inputs = RouterInputs(gguf, texts, n_layer, n_embd, n_ctx)
    try:
        with progress(n_layer, "fit", " layers") as bar:
            targets = labels_to_targets(inputs.labels, n_expert)
            fit = fit_routers(inputs.layer, targets, n_layer, ridge, bar.update)
        loads = np.mean(
            [
                load_of(softmax(inputs.layer(layer) @ fit.routers[layer].T), inputs.texts, len(texts), min(2, n_expert))
                for layer in range(n_layer)
            ],
            axis=0,
        )
    finally:
        inputs.close()
    report = {
        "accuracy": [round(float(value), 4) for value in fit.accuracy],
        "entropy": [round(float(value), 4) for value in fit.entropy],
        "load": {text.name: [round(float(share), 4) for share in loads[i]] for i, text in enumerate(texts)},
    }
    return Gates(fit.routers), report


def choose_sharpness(file: "GgufFile", gates: "Gates", texts: Sequence[Text], n_ctx: int, folder: Path) -> float:
    """Return the factor of fitted routers with the least loss on the tuning tokens.

    A regression that tells the texts apart is surer than is good: a second expert's part helps, on most texts. The
    factors get smaller until the loss gets larger; each is tried in a copy of the model in `folder`.
    """
    from ..merge.gates import Gates
    from ..merge.regate import regate

    tuning = [replace(text, held_out=text.tune) for text in texts]
    if any(len(text.tune) < 2 for text in texts):
        return 1.0
    best, least = 1.0, np.inf
    for sharpness in SHARPNESSES:
        (tried,) = regate(file, Gates(sharpness * gates.routers, gates.shared), folder / "tried.gguf", force=True)
        loss = float(np.mean(list(held_out_losses(tried, tuning, n_ctx).values())))
        detail(f"sharpness {sharpness}: a loss of {loss:.4f} on the tuning tokens")
        if loss >= least:
            break
        best, least = sharpness, loss
    return best


def held_out_losses(gguf: Path, texts: Sequence[Text], n_ctx: int) -> dict[str, float]:
    """Return the mean loss of each text's held-out tokens, in nats."""
    from ..runner.engine import Engine
    from ..runner.load_options import LoadOptions
    from ..runner.losses import token_losses
    from ..runner.model import Model

    options = LoadOptions(n_ctx=n_ctx, n_ubatch=UBATCH)
    with Model(gguf, options) as model, Engine(model, options) as engine:
        return {text.name: float(token_losses(engine, text.held_out, n_ctx).mean()) for text in texts}


def calibrated_gates(
    recipe: "Recipe", models: "Models", gate_base: str, n_token: int = 2560, n_ctx: int = 512
) -> "Gates":
    """Compute a recipe's calibrated gates: a round on the base, whose layers see no routing, then one on the merge."""
    from ..formats.gguf_file import read_gguf
    from ..merge.calibrate import RIDGE
    from ..merge.gates import Gates
    from ..merge.open import open_recipe, sizes_of
    from ..merge.prompts import prompt_tokenizer

    base = models[recipe.base_model].checkpoint
    sizes = sizes_of(recipe, models)
    shape = (sizes.n_layer, len(recipe.experts), sizes.n_embd)
    named = [(expert.name, index, "\n".join(_contents(recipe, index))) for index, expert in enumerate(recipe.experts)]
    texts = split_texts(named, prompt_tokenizer(base.folder), n_token, 0)
    shared = None
    if recipe.shared_experts:
        from .gates import hidden_gates

        shared = hidden_gates(recipe, models, gate_base).shared
    say(f"{recipe.name}: fitting routers to {sum(len(text.fit) for text in texts)} tokens, twice")
    first, report = fit_gates(cached_gguf(base, gate_base), texts, shape, n_ctx, RIDGE)
    detail(f"accuracy per layer on the base: {report['accuracy']}")
    merged = open_recipe(recipe, Gates(first.routers, shared), models=models)
    with TemporaryDirectory(prefix="moe-gguf-", dir=cache_folder()) as folder:
        gguf = Path(folder) / "merged.gguf"
        write_gguf(merged, gguf, gate_base)
        second, report = fit_gates(gguf, texts, shape, n_ctx, RIDGE)
        sharpness = choose_sharpness(read_gguf(gguf), Gates(second.routers, shared), texts, n_ctx, Path(folder))
    detail(f"accuracy per layer on the merge: {report['accuracy']}")
    return Gates(np.float32(sharpness) * second.routers, shared)


def _contents(recipe: "Recipe", index: int) -> list[str]:
    """Return an expert's texts: its files, or its prompts when it names none."""
    expert = recipe.experts[index]
    contents = []
    for name in expert.positive_texts:
        path = next((path for path in (recipe.folder / name, Path(name)) if path.is_file()), None)
        if path is None:
            raise RecipeError(f"{recipe.name}: expert {expert.name}: text {name}: no such file")
        contents.append(path.read_text(encoding="utf-8", errors="replace"))
    return contents or list(expert.positive_prompts)
