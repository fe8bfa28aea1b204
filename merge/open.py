"""A recipe opened as a checkpoint: what convert, quantize and write read, without the merge having been written."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..formats.checkpoint import Checkpoint, Parent
from ..formats.errors import RecipeError
from ..formats.floats import widen
from ..formats.words import count
from .families import MixtureKind, choose_kind, complete_config, mixture_config
from .gates import Gates, cheap_embed_gates, check_gates, random_gates
from .models import DenseModel, Fetch, open_models
from .prompts import prompt_tokenizer
from .recipe import DTYPES, RANDOM_MODES, ModelReference, Recipe
from .source import Ingredients, MergedSource, Sizes, merged_source

Models = Mapping[ModelReference, DenseModel]


def open_recipe(
    recipe: Recipe,
    gates: Gates | None = None,
    *,
    layout: str = "classic",
    models: Models | None = None,
    fetch: Fetch | None = None,
) -> Checkpoint:
    """Open a recipe as the merged checkpoint it stands for; reads no weight but cheap_embed's rows.

    `gates` may be left out for the modes that need no running model (random, uniform_random, cheap_embed); `layout` is
    "classic" or "fused"; `models` are the recipe's, if they are open already. Raises RecipeError and CheckpointError.
    """
    opened = models if models is not None else open_models(recipe, fetch)
    family = family_of(recipe, opened)
    base = opened[recipe.base_model]
    sizes = sizes_of(recipe, opened)
    if gates is None:
        gates = static_gates(recipe, base, sizes)
    chosen = family.classic if layout == "classic" else family.fused
    if chosen is None:
        raise RecipeError(f"{recipe.name}: {family.name} has no {layout} layout; use classic")
    dtype = out_dtype(recipe, base)
    ingredients = Ingredients(recipe, family, chosen, opened, gates, sizes, dtype)
    _check_gates(ingredients)
    source = merged_source(ingredients)
    return Checkpoint(
        name=recipe.name,
        source=source,
        config=merged_config(recipe, family, base),
        folder=base.checkpoint.folder,
        parents=parents_of(recipe, opened),
    )


def with_gates(merged: Checkpoint, gates: Gates) -> Checkpoint:
    """Return an opened recipe with other gates; nothing is opened again. Raises RecipeError for a wrong size."""
    if not isinstance(merged.source, MergedSource):
        raise RecipeError(f"{merged.name}: is no opened recipe, so it takes no gates")
    ingredients = replace(merged.source.ingredients, gates=gates)
    _check_gates(ingredients)
    return replace(merged, source=merged_source(ingredients))


def _check_gates(of: Ingredients) -> None:
    n_shared = len(of.recipe.shared_experts) if of.family.shared_gate else 0
    check_gates(of.gates, of.sizes.n_layer, len(of.recipe.experts), of.sizes.n_embd, n_shared, of.recipe.name)


def family_of(recipe: Recipe, models: Models) -> MixtureKind:
    """Return what kind of mixture the recipe makes. Raises RecipeError when its models do not fit together."""
    types = {models[reference].label: models[reference].model_type for reference in recipe.references}
    family = choose_kind(types, len(recipe.shared_experts), recipe.architecture, recipe.name)
    prompted = any(expert.positive_prompts for expert in recipe.shared_experts)
    if family.shared_gate and not prompted and recipe.gate_mode not in RANDOM_MODES:
        raise RecipeError(f"{recipe.name}: {family.name} gates its shared expert, so that one needs positive_prompts")
    if recipe.shared_experts and prompted and not family.shared_gate:
        raise RecipeError(f"{recipe.name}: {family.name} does not gate its shared expert; remove that one's prompts")
    return family


def sizes_of(recipe: Recipe, models: Models) -> Sizes:
    """Return the base's sizes. Raises RecipeError when one is missing or an expert has another number of layers."""
    base = models[recipe.base_model]
    config = complete_config(base.checkpoint.config)
    found = {}
    for key in ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if not isinstance(value := config.get(key), int) or value < 1:
            raise RecipeError(f"{base.checkpoint.folder}: config.json has no {key}")
        found[key] = value
    for expert in (*recipe.experts, *recipe.shared_experts):
        n_layer = models[expert.source_model].checkpoint.config["num_hidden_layers"]
        if n_layer != found["num_hidden_layers"]:
            raise RecipeError(
                f"{recipe.name}: expert {expert.name} has {count(n_layer, 'layer')}, "
                f"the base {found['num_hidden_layers']}"
            )
    head_dim = config.get("head_dim") or found["hidden_size"] // found["num_attention_heads"]
    return Sizes(*found.values(), head_dim=head_dim)


def out_dtype(recipe: Recipe, base: DenseModel) -> str | None:
    """Return the merge's dtype ("BF16"): the recipe's, else that of the base's config.json, else None."""
    config = base.checkpoint.config
    name = recipe.dtype or config.get("dtype") or config.get("torch_dtype")
    if name is None:
        return None
    if name not in DTYPES:
        raise RecipeError(f"{recipe.name}: the base's dtype is {name!r}; name one of {', '.join(DTYPES)}")
    return DTYPES[name]


def merged_config(recipe: Recipe, family: MixtureKind, base: DenseModel) -> dict[str, Any]:
    """Return the mixture's config.json."""
    dense = complete_config(base.checkpoint.config)
    config = mixture_config(family, dense, len(recipe.experts), recipe.experts_per_token, len(recipe.shared_experts))
    if recipe.dtype:
        config["dtype" if "dtype" in config else "torch_dtype"] = recipe.dtype
    return config


def static_gates(recipe: Recipe, base: DenseModel, sizes: Sizes) -> Gates:
    """Return the gates of a mode that runs no model. Raises RecipeError for the other modes."""
    if recipe.gate_mode in RANDOM_MODES:
        return random_gates(recipe, sizes.n_layer, sizes.n_embd)
    if recipe.gate_mode != "cheap_embed":
        raise RecipeError(f"{recipe.name}: gate_mode {recipe.gate_mode} needs gates; compute them, or pass --gates")
    name, source = "model.embed_tokens.weight", base.checkpoint.source
    return cheap_embed_gates(
        recipe.experts,
        prompt_tokenizer(base.checkpoint.folder),
        lambda token: widen(source.read_rows(name, token, token + 1))[0],
        sizes.n_layer,
        recipe.shared_experts if any(e.positive_prompts for e in recipe.shared_experts) else (),
    )


def parents_of(recipe: Recipe, models: Models) -> tuple[Parent, ...]:
    """Return the models the mixture is made of, the base first, each once."""
    named = []
    for reference in recipe.references:
        model = models[reference]
        name = model.lora.name if model.lora else model.checkpoint.name
        named.append(Parent(model.repo.rpartition("/")[2] if model.repo else name, model.repo))
    return tuple(dict.fromkeys(named))
