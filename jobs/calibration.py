"""Calibration, wired: runner runs texts through a mixture with routers of any kind, merge fits routers to what it saw.

The mixture is loaded once and never copied: its routers are replaced while llama.cpp computes.

Long because what is read, fitted and judged are steps of one calculation.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formats.errors import MoeGgufError, RecipeError
from ..formats.text_files import read_text_file
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_model
from .working_files import roomy_cache, temporary_folder, write_gguf

if TYPE_CHECKING:
    from ..merge.gates import Gates
    from ..merge.open import Models
    from ..merge.recipe import Recipe
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model
    from ..runner.rerouting import Route

UBATCH = 512
TUNING_TOKENS = 512
MAX_FITTERS = 4
LOW_ACCURACY = 0.7
F16_MAX = 65504.0
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
    """What enters each router for all tokens of the texts: float16 [n_layer, n_token, n_embd] in a nameless file.

    A text's tokens go to its own expert alone, or where `routers` send them. So the layers after a router see what
    they will see once routing is right, and one round does.
    """

    def __init__(
        self,
        gguf: Path,
        texts: Sequence[Text],
        shape: tuple[int, int, int],
        n_ctx: int,
        routers: np.ndarray | None = None,
        load: LoadRequest = DEFAULT_LOAD,
        listener: Listener = SILENT,
    ) -> None:
        from ..runner.rerouting import by_routers, enter_routers, to_expert

        n_layer, n_expert, n_embd = shape
        self.labels = np.concatenate([np.full(len(text.fit), text.expert) for text in texts])
        self.texts = np.concatenate([np.full(len(text.fit), i) for i, text in enumerate(texts)])
        shape_of_states = (n_layer, len(self.labels), n_embd)
        with TemporaryFile(dir=roomy_cache(2 * math.prod(shape_of_states))) as file:
            self.states = np.memmap(file, np.float16, "w+", shape=shape_of_states)
        self._at = [0] * n_layer
        wish = reading(load, n_ctx, n_expert_used=1 if routers is None else None)
        with (
            listener.bar(len(self.labels), "router inputs", " tokens") as bar,
            opened_model(gguf, wish, listener) as (model, options),
        ):
            for text in texts:
                route = to_expert(text.expert, n_expert) if routers is None else by_routers(routers)
                kept = self._kept(route, bar.update)
                enter_routers(model, options, windows_of(text.fit, n_ctx), kept, n_layer)

    def _kept(self, route: "Route", advance: Callable[[float], object]) -> "Route":
        def kept(layer: int, x: np.ndarray) -> np.ndarray:
            start = self._at[layer]
            self._at[layer] = start + len(x)
            self.states[layer, start : self._at[layer]] = np.clip(x, -F16_MAX, F16_MAX)
            advance(0 if layer else len(x))
            return route(layer, x)

        return kept

    def layer(self, layer: int) -> np.ndarray:
        """Return a layer's inputs as float32 [n_token, n_embd]."""
        return self.states[layer].astype(np.float32)


@dataclass(frozen=True)
class Fit:
    """How well routers fit: accuracy and entropy per layer, and the share of each text's tokens per expert."""

    accuracy: tuple[float, ...]
    entropy: tuple[float, ...]
    load: Mapping[str, tuple[float, ...]]

    def as_json(self) -> dict[str, Any]:
        """Return the fit as `calibrate --json` prints it."""
        return {
            "accuracy": [round(value, 4) for value in self.accuracy],
            "entropy": [round(value, 4) for value in self.entropy],
            "load": {name: [round(share, 4) for share in shares] for name, shares in self.load.items()},
        }


def fit_gates(
    gguf: Path,
    texts: Sequence[Text],
    shape: tuple[int, int, int],
    n_ctx: int,
    ridge: float,
    routers: np.ndarray | None = None,
    load: LoadRequest = DEFAULT_LOAD,
    listener: Listener = SILENT,
) -> "tuple[np.ndarray, Fit]":
    """Fit a mixture's routers to texts; return them, float32 [n_layer, n_expert, n_embd], and the report of the fit.

    Texts run through their own experts, or where `routers` send them.
    """
    from gguf.constants import Keys
    from scipy.special import softmax

    from ..formats.gguf_file import read_gguf
    from ..merge.calibrate import fit_routers, labels_to_targets, load_of
    from ..runner.threads import best_thread_count

    n_layer, n_expert, _ = shape
    n_used = int(np.max(read_gguf(gguf).hyper(Keys.LLM.EXPERT_USED_COUNT) or n_expert))
    inputs = RouterInputs(gguf, texts, shape, n_ctx, routers, load, listener)
    with listener.bar(n_layer, "fit", " layers") as bar:
        targets = labels_to_targets(inputs.labels, n_expert)
        n_threads = min(best_thread_count(), MAX_FITTERS)
        fit = fit_routers(inputs.layer, targets, n_layer, ridge, n_threads, bar.update)
    loads = np.mean(
        [
            load_of(softmax(inputs.layer(layer) @ fit.routers[layer].T, axis=1), inputs.texts, len(texts), n_used)
            for layer in range(n_layer)
        ],
        axis=0,
    )
    return fit.routers, Fit(
        accuracy=tuple(float(value) for value in fit.accuracy),
        entropy=tuple(float(value) for value in fit.entropy),
        load={text.name: tuple(float(share) for share in loads[i]) for i, text in enumerate(texts)},
    )


def choose_sharpness(
    model: "Model",
    options: "LoadOptions",
    routers: np.ndarray,
    texts: Sequence[Text],
    listener: Listener = SILENT,
) -> float:
    """Return the factor of fitted routers with the least loss on the tuning tokens.

    A regression that tells the texts apart is surer than is good where a second expert's part helps. The factors get
    smaller until the loss gets larger.
    """
    if any(len(text.tune) < 2 for text in texts):
        return 1.0
    best, least = 1.0, np.inf
    tuning = {text.name: text.tune for text in texts}
    for sharpness in SHARPNESSES:
        loss = float(np.mean(list(losses_of(model, options, tuning, routers, sharpness, listener).values())))
        listener.detail(f"sharpness {sharpness}: a loss of {loss:.4f} on the tuning tokens")
        if loss >= least:
            break
        best, least = sharpness, loss
    return best


def losses_of(
    model: "Model",
    options: "LoadOptions",
    texts: Mapping[str, Sequence[int]],
    routers: np.ndarray | None = None,
    sharpness: float = 1.0,
    listener: Listener = SILENT,
) -> dict[str, float]:
    """Return the mean loss of each text's tokens in nats, with the model's own routers or with others.

    They are read in windows of options.n_ctx.
    """
    from ..runner.engine import Engine
    from ..runner.losses import token_losses
    from ..runner.rerouting import by_routers, rerouted_losses

    losses: dict[str, float] = {}
    with listener.bar(sum(map(len, texts.values())), "losses", " tokens") as bar:
        for name, tokens in texts.items():
            if routers is None:
                with Engine(model, options) as engine:
                    every = token_losses(engine, tokens, options.n_ctx or len(tokens))
            else:
                every = rerouted_losses(model, options, tokens, by_routers(routers, sharpness))
            losses[name] = float(every.mean())
            bar.update(len(tokens))
    return losses


def reading(load: LoadRequest, n_ctx: int, n_expert_used: int | None = None) -> LoadRequest:
    """Return how texts are read: in windows of n_ctx tokens, placed as `load` says."""
    return replace(load, n_ctx=n_ctx, n_ubatch=UBATCH, n_expert_used=n_expert_used)


def calibrated_gates(
    recipe: "Recipe",
    models: "Models",
    gate_base: str,
    shared: np.ndarray | None = None,
    *,
    n_token: int = 2560,
    n_ctx: int = 512,
    listener: Listener = SILENT,
) -> "Gates":
    """Compute a recipe's calibrated gates on the merge itself, in a temporary GGUF of type `gate_base`.

    `shared` are the gates of its shared experts, which calibration leaves as they are.
    """
    from ..merge.calibrate import RIDGE
    from ..merge.gates import Gates, zero_gates
    from ..merge.open import open_recipe, sizes_of
    from ..merge.prompts import prompt_tokenizer

    base = models[recipe.base_model].checkpoint
    sizes = sizes_of(recipe, models)
    shape = (sizes.n_layer, len(recipe.experts), sizes.n_embd)
    named = [(expert.name, index, "\n".join(_contents(recipe, index))) for index, expert in enumerate(recipe.experts)]
    texts = split_texts(named, prompt_tokenizer(base.folder), n_token, 0)
    gates = zero_gates(recipe, sizes.n_layer, sizes.n_embd)
    if shared is not None:
        gates = Gates(gates.routers, shared)
    listener.say(f"{recipe.name}: fitting routers to {sum(len(text.fit) for text in texts)} tokens")
    with temporary_folder() as folder:
        gguf = Path(folder) / "merged.gguf"
        write_gguf(open_recipe(recipe, gates, models=models), gguf, gate_base, listener)
        routers, fit = fit_gates(gguf, texts, shape, n_ctx, RIDGE, listener=listener)
        with opened_model(gguf, reading(DEFAULT_LOAD, n_ctx), listener) as (model, options):
            sharpness = choose_sharpness(model, options, routers, texts, listener)
    listener.detail(f"accuracy per layer: {fit.as_json()['accuracy']}")
    if min(fit.accuracy) < LOW_ACCURACY:
        listener.warn(
            f"routers name the right expert for as few as {min(fit.accuracy):.0%} of the tokens they were fitted "
            "to: the experts' texts are too much alike"
        )
    return Gates(np.float32(sharpness) * routers, gates.shared)


def _contents(recipe: "Recipe", index: int) -> list[str]:
    """Return an expert's texts: its files, or its prompts when it names none."""
    from ..merge.recipe import find_text

    expert = recipe.experts[index]
    contents = []
    for name in expert.positive_texts:
        path = find_text(recipe, name)
        if path is None:
            raise RecipeError(f"{recipe.name}: expert {expert.name}: text {name}: no such file")
        contents.append(read_text_file(path))
    return contents or list(expert.positive_prompts)
