"""The gates of a recipe: merge says what is needed, convert makes a GGUF of it in a cache, runner reads its states."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..formats.checkpoint import Checkpoint
from .terminal import detail, progress, say, warn

if TYPE_CHECKING:
    from ..merge.gates import Gates
    from ..merge.open import Models
    from ..merge.recipe import Recipe

CACHE_VARIABLE = "MOE_GGUF_CACHE"
UBATCH = 512


def recipe_gates(recipe: "Recipe", models: "Models", file: Path | None = None, gate_base: str = "bf16") -> "Gates":
    """Return the gates of a recipe: those in `file` if it is there, else computed, and then saved to `file`."""
    from ..merge.gates import describe_degenerate, load_gates, save_gates

    if file is not None and file.is_file():
        return load_gates(file)
    gates = compute_gates(recipe, models, gate_base)
    # Regression leaves routers that add up to zero: nothing is wrong with their condition number.
    if recipe.gate_mode != "calibrated" and (degenerate := describe_degenerate(gates)):
        warn(degenerate)
    if file is not None:
        save_gates(file, gates, {"recipe": recipe.name, "gate_mode": recipe.gate_mode, "gate_base": gate_base})
        say(f"gates saved to {file}")
    return gates


def compute_gates(recipe: "Recipe", models: "Models", gate_base: str = "bf16") -> "Gates":
    """Compute the gates of a recipe in its gate_mode; hidden modes and calibration run the base in llama.cpp."""
    from ..merge.open import sizes_of, static_gates

    if recipe.gate_mode == "calibrated":
        from .calibration import calibrated_gates

        return calibrated_gates(recipe, models, gate_base)
    base = models[recipe.base_model]
    if not recipe.gate_mode.startswith("hidden"):
        return static_gates(recipe, base, sizes_of(recipe, models))
    return hidden_gates(recipe, models, gate_base)


def hidden_gates(recipe: "Recipe", models: "Models", gate_base: str) -> "Gates":
    """Compute gates from the hidden states of the base for the recipe's prompts."""
    from ..merge.gates import from_hidden, prompted_gates

    base = models[recipe.base_model].checkpoint
    shared = [expert for expert in recipe.shared_experts if expert.positive_prompts]
    prompts = [
        prompt
        for expert in (*recipe.experts, *shared)
        for prompt in (*expert.positive_prompts, *expert.negative_prompts)
    ]
    states = layer_inputs(base, cached_gguf(base, gate_base), list(dict.fromkeys(prompts)))
    represent = from_hidden(states.__getitem__, average=recipe.gate_mode == "hidden_avg")
    return prompted_gates(recipe.experts, represent, shared)


def layer_inputs(checkpoint: Checkpoint, gguf: Path, prompts: Sequence[str]) -> dict[str, np.ndarray]:
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
        bar = stack.enter_context(progress(len(prompts), "hidden states", " prompts"))
        model = stack.enter_context(Model(gguf, LoadOptions()))
        for prompt in prompts:
            ids = tokens(prompt)
            options = LoadOptions(n_ctx=max(len(ids), UBATCH), n_ubatch=UBATCH, flash_attn="off")
            states = capture(model, options, ids, set(names).__contains__)
            found[prompt] = np.stack([states[name] for name in names])
            bar.update(1)
    return found


def cached_gguf(checkpoint: Checkpoint, outtype: str) -> Path:
    """Return a GGUF of a checkpoint in moe-gguf's cache, made there if it is not yet."""
    identity = sorted(checkpoint.source.identity().items())
    digest = blake2b(repr((identity, outtype)).encode(), digest_size=8).hexdigest()
    path = cache_folder() / f"{checkpoint.name}-{digest}-{outtype}.gguf"
    if path.is_file():
        detail(f"{path} is used again")
    else:
        write_gguf(checkpoint, path, outtype)
    return path


def write_gguf(checkpoint: Checkpoint, path: Path, outtype: str) -> None:
    """Write a plain GGUF of a checkpoint, to be run and not to be kept."""
    from ..convert.build_plan import build_plan
    from ..convert.outtype import choose_entries, file_type_field
    from ..quantize.encode import Encoder
    from ..writer.partial import Output
    from ..writer.write import write

    plan = build_plan(checkpoint)
    plan = plan.with_fields(file_type_field(plan, outtype))
    output = Output(path, plan.fields, choose_entries(plan, outtype), f"gates {outtype}")
    path.parent.mkdir(parents=True, exist_ok=True)
    n_weights = sum(tensor.n_weights for tensor in plan.tensors)
    with progress(n_weights, f"{checkpoint.name} for its states", " weights") as bar:
        write(plan, [output], Encoder(), n_threads=os.cpu_count() or 1, advance=bar.update)


def cache_folder() -> Path:
    """Return moe-gguf's cache: MOE_GGUF_CACHE, else where the system keeps caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen)
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "moe-gguf"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "moe-gguf"
