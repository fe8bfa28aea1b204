"""The gates of a recipe: merge says what is needed, convert makes a GGUF of it in a cache, runner reads its states."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..formats.checkpoint import Checkpoint
from ..formats.errors import RecipeError
from .cache import bound_cache
from .calibration import calibrated_gates
from .listener import SILENT, Listener
from .working_files import cached_gguf

if TYPE_CHECKING:
    from ..merge.gates import Gates
    from ..merge.open import Models
    from ..merge.recipe import Recipe

UBATCH = 512
GATE_BASE = "bf16"


def recipe_gates(
    recipe: "Recipe",
    models: "Models",
    file: Path | None = None,
    gate_base: str | None = None,
    listener: Listener = SILENT,
) -> "Gates":
    """Return the gates of a recipe: those in `file` if it is there, else computed, and then saved to `file`.

    Whether the file's are this recipe's was asked when the recipe was opened (`check_freshness`).
    """
    from ..merge.gates import describe_degenerate, load_gates, save_gates
    from ..merge.gates_origin import gates_origin

    if file is not None and file.is_file():
        return load_gates(file)
    gate_base = gate_base or GATE_BASE
    gates = compute_gates(recipe, models, gate_base, listener, keep_base=file is None)
    # Regression leaves routers that add up to zero: nothing is wrong with their condition number.
    if recipe.gate_mode != "calibrated" and (degenerate := describe_degenerate(gates)):
        listener.warn(degenerate)
    if file is not None:
        notes = {"recipe": recipe.name, "gate_mode": recipe.gate_mode, "gate_base": gate_base}
        save_gates(file, gates, notes | gates_origin(recipe, models, gate_base))
        listener.say(f"gates saved to {file}")
    return gates


def check_freshness(
    recipe: "Recipe", models: "Models", file: Path | None, gate_base: str | None, listener: Listener = SILENT
) -> None:
    """Refuse a file of gates that were computed from something else than this recipe, before they are used.

    Raises RecipeError, saying what differs; a file that does not say what it is made of is warned about.
    """
    from ..merge.gates import gates_notes
    from ..merge.gates_origin import check_origin, gates_origin

    if file is None or not file.is_file():
        return
    if warning := check_origin(file, gates_notes(file), recipe, gates_origin(recipe, models, gate_base)):
        listener.warn(warning)


def compute_gates(
    recipe: "Recipe",
    models: "Models",
    gate_base: str = GATE_BASE,
    listener: Listener = SILENT,
    *,
    keep_base: bool = True,
) -> "Gates":
    """Compute the gates of a recipe in its gate_mode; hidden modes and calibration run the base in llama.cpp.

    The base's GGUF stays in the cache for the next time with `keep_base`, as far as the cache's limit allows.
    """
    from ..merge.open import sizes_of, static_gates

    if recipe.gate_mode == "calibrated":
        hidden = hidden_gates(recipe, models, gate_base, listener, keep_base) if recipe.shared_experts else None
        shared = hidden.shared if hidden else None
        return calibrated_gates(recipe, models, gate_base, shared, listener=listener)
    base = models[recipe.base_model]
    if not recipe.gate_mode.startswith("hidden"):
        return static_gates(recipe, base, sizes_of(recipe, models))
    return hidden_gates(recipe, models, gate_base, listener, keep_base)


def hidden_gates(
    recipe: "Recipe", models: "Models", gate_base: str, listener: Listener = SILENT, keep_base: bool = True
) -> "Gates":
    """Compute gates from the hidden states of the base for the recipe's prompts; see `compute_gates`."""
    from ..merge.gates import from_hidden, prompted_gates

    base = models[recipe.base_model].checkpoint
    shared = [expert for expert in recipe.shared_experts if expert.positive_prompts]
    prompts = [
        prompt
        for expert in (*recipe.experts, *shared)
        for prompt in (*expert.positive_prompts, *expert.negative_prompts)
    ]
    gguf = cached_gguf(base, gate_base, listener)
    states = layer_inputs(base, gguf, list(dict.fromkeys(prompts)), listener)
    if not keep_base:
        gguf.unlink(missing_ok=True)
    for entry in bound_cache():
        listener.detail(f"{entry.name} is removed from the cache, which would hold more than its limit")
    represent = from_hidden(states.__getitem__, average=recipe.gate_mode == "hidden_avg")
    return prompted_gates(recipe.experts, represent, shared)


def layer_inputs(
    checkpoint: Checkpoint, gguf: Path, prompts: Sequence[str], listener: Listener = SILENT
) -> dict[str, np.ndarray]:
    """Return what enters each layer of a model for each prompt: float32 [n_layer, n_token, n_embd] by prompt."""
    from ..merge.prompts import prompt_tokenizer
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model
    from ..runner.tap import capture

    tokens = prompt_tokenizer(checkpoint.folder)
    n_layer = int(checkpoint.config["num_hidden_layers"])
    names = ["embd", *(f"l_out-{layer}" for layer in range(n_layer - 1))]
    found: dict[str, np.ndarray] = {}
    with ExitStack() as stack:
        bar = stack.enter_context(listener.bar(len(prompts), "hidden states", " prompts"))
        model = stack.enter_context(Model(gguf, LoadOptions()))
        for prompt in prompts:
            ids = tokens(prompt)
            if not ids:
                raise RecipeError(f"of the prompt {prompt!r} no token comes, so it has no hidden state; remove it")
            options = LoadOptions(n_ctx=max(len(ids), UBATCH), n_ubatch=UBATCH, flash_attn="off")
            states = capture(model, options, ids, set(names).__contains__)
            found[prompt] = np.stack([states[name] for name in names])
            bar.update(1)
    return found
