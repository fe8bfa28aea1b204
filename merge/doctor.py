"""The merge doctor: an opened recipe comes in, what is wrong or doubtful about it goes out, before anything is written.

Reads headers, tokenizers, and a few rows of every expert tensor; all rows only of experts that seem to be the same.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..formats.checkpoint import Checkpoint
from ..formats.errors import TokenizerError
from ..models.tokenizer_difference import DifferenceKind, TokenizerDifference
from .alike import Watch, same_weights, unwatched
from .families import PARTS, complete_config
from .folders import has_tokenizer, license_of
from .gates import zero_gates
from .lora import changes
from .models import DenseModel
from .open import Models, family_of, open_recipe, out_dtype, sizes_of
from .prompts import prompt_tokenizer
from .recipe import PROMPTED_MODES, RANDOM_MODES, Expert, Recipe, find_text

CONSTANTS = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "sliding_window",
    "max_position_embeddings",
)
# What a rounding from one dtype to another can lose.
LOSSES = {
    ("F32", "BF16"): "16 bits of precision",
    ("F32", "F16"): "precision and range",
    ("F16", "BF16"): "3 bits of precision",
    ("BF16", "F16"): "range: values beyond 65504 become infinite",
}
# What becomes of an expert whose tokenizer is not the base's.
WHAT_THEN = {
    DifferenceKind.OTHER_TOKENS: "the base's are used, so this expert will be given tokens that it learned as others",
    DifferenceKind.MORE_TOKENS: "the base's tokenizer and {rows} embedding rows are taken: they become plain text",
    DifferenceKind.FEWER_TOKENS: "this expert has not learned them",
    DifferenceKind.CUTTING: "the base's way is used",
    DifferenceKind.SPECIAL: "what the base says is used",
    DifferenceKind.TEMPLATE: "what the base has is used",
    DifferenceKind.UNREADABLE: "tokenizers cannot be compared",
}
CompareTokenizers = Callable[[Path, Path], Sequence[TokenizerDifference]]


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found; an error stops the merge."""

    is_error: bool
    text: str


def examine(recipe: Recipe, models: Models, compare: CompareTokenizers, watch: Watch = unwatched) -> list[Finding]:
    """Return all findings about a recipe and its opened models, errors first.

    `compare(folder, base)` says how two folders' tokenizers differ; `watch` shows how far it is when experts are
    compared throughout. Raises MoeGgufError when the models do not fit together.
    """
    findings = [
        *_alike(recipe, models, watch),
        *(
            _warning(f"{key} means nothing to a mixture: mergekit-moe ignores it, and so does this")
            for key in recipe.ignored
        ),
        *_prompts(recipe),
        *_tokens(recipe, models[recipe.base_model]),
        *_unused(recipe, models),
        *(finding for model in models.values() for finding in _compare(models[recipe.base_model], model, compare)),
        *(_warning(note) for model in models.values() for note in model.checkpoint.notes),
        *_base_tokenizer(models[recipe.base_model]),
        *_dtypes(recipe, models),
        *_licenses(models),
        *_adapters(models),
    ]
    return sorted(dict.fromkeys(findings), key=lambda finding: not finding.is_error)


def _error(text: str) -> Finding:
    return Finding(True, text)


def _warning(text: str) -> Finding:
    return Finding(False, text)


def _alike(recipe: Recipe, models: Models, watch: Watch) -> Iterator[Finding]:
    """Find experts with the same weights, and those with the base's; the base is looked at as one more expert."""
    base = models[recipe.base_model].checkpoint
    n_expert = len(recipe.experts)
    experts = recipe.experts
    if all(f"model.layers.0.mlp.{part}.weight" in base.source.tensors for part in PARTS):
        experts = (*experts, Expert(recipe.base_model, "the base"))
    extended = replace(recipe, experts=experts)
    sizes = sizes_of(recipe, models)
    merged = open_recipe(extended, zero_gates(extended, sizes.n_layer, sizes.n_embd), models=models)
    made_of = [_made_of(index, expert, models[expert.source_model]) for index, expert in enumerate(experts)]
    for group in same_weights(merged.source, made_of, watch):
        names = [experts[index].name for index in group if index < n_expert]
        if len(names) == n_expert > 1 and recipe.gate_mode not in RANDOM_MODES:
            yield _error(
                f"all experts have the same weights ({', '.join(names)}): the mixture would be the one model, slower; "
                "to train it afterwards use gate_mode: random"
            )
        elif len(names) > 1:
            yield _warning(f"experts {', '.join(names)} have the same weights")
        if group[-1] == n_expert:
            for index in group[:-1]:
                is_base = models[experts[index].source_model].checkpoint is base
                what = "is the base itself" if is_base else "has the base's weights"
                yield _warning(f"expert {experts[index].name} {what}")


def _made_of(index: int, expert: Expert, model: DenseModel) -> Hashable:
    """Return what an expert's weights follow from; noise is drawn for each expert anew."""
    files = tuple(sorted(model.checkpoint.source.identity().items()))
    adapter = None
    if model.lora is not None:
        adapter = (tuple(sorted(model.lora.source.identity().items())), tuple(sorted(model.lora.factors.items())))
    return files, adapter, expert.residual_scale, None if expert.noise_scale is None else (index, expert.noise_scale)


def _prompts(recipe: Recipe) -> Iterator[Finding]:
    said: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for expert in recipe.experts:
        said.setdefault((expert.positive_prompts, expert.negative_prompts, expert.positive_texts), []).append(
            expert.name
        )
    for (positive, _, texts), names in said.items():
        if len(names) > 1 and (positive or texts):
            yield _warning(f"experts {', '.join(names)} have the same prompts, so they will be used alike")
    for expert in recipe.experts:
        if len(set(expert.positive_prompts)) < len(expert.positive_prompts):
            yield _warning(f"expert {expert.name} has a prompt twice")
        if not all(prompt.strip() for prompt in (*expert.positive_prompts, *expert.negative_prompts)):
            yield _warning(f"expert {expert.name} has an empty prompt")
        for name in expert.positive_texts:
            if find_text(recipe, name) is None:
                yield _error(f"expert {expert.name}: text {name}: no such file")


def _tokens(recipe: Recipe, base: DenseModel) -> Iterator[Finding]:
    """Find prompts that the base cannot tokenize, or of which no token comes: no router can be made of them."""
    experts = (*recipe.experts, *recipe.shared_experts)
    prompts = {prompt: expert for expert in experts for prompt in (*expert.positive_prompts, *expert.negative_prompts)}
    if not prompts or recipe.gate_mode not in PROMPTED_MODES:
        return
    try:
        tokenize = prompt_tokenizer(base.checkpoint.folder)
        empty = [prompt for prompt in prompts if not prompt.strip() and not tokenize(prompt)]
    except TokenizerError as error:
        yield _error(str(error))
        return
    if empty and recipe.gate_mode.startswith("hidden"):
        yield _error(
            f"expert {prompts[empty[0]].name}: of the prompt {empty[0]!r} no token comes (the base's tokenizer adds no "
            "token at the beginning), so it has no hidden state; remove it"
        )


def _unused(recipe: Recipe, models: Models) -> Iterator[Finding]:
    """Find tensors of the models that the mixture has no place for."""
    family = family_of(recipe, models)
    known = {f"mlp.{part}.weight" for part in PARTS} | set(family.layer_tensors) | {"self_attn.rotary_emb.inv_freq"}
    for reference in dict.fromkeys((recipe.base_model, *(e.source_model for e in recipe.experts))):
        checkpoint = models[reference].checkpoint
        homeless = [
            name
            for name in checkpoint.source.tensors
            if name.startswith("model.layers.0.") and name.removeprefix("model.layers.0.") not in known
        ]
        if not homeless:
            continue
        which = ", ".join(name.removeprefix("model.layers.0.") for name in homeless[:4])
        if reference == recipe.base_model or any(".mlp." in name for name in homeless):
            yield _error(f"{reference.model} has tensors that {family.name} has no place for: {which}")


def _compare(base: DenseModel, model: DenseModel, compare: CompareTokenizers) -> Iterator[Finding]:
    """Compare an expert's model with the base, whose attention, embeddings and tokenizer the mixture takes."""
    if model.lora is not None and has_tokenizer(model.lora.folder):
        yield from _tokenizers(base, f"adapter {model.reference.lora}", model.lora.folder, compare)
    if model.checkpoint is base.checkpoint:
        return
    name = model.label
    ours, theirs = complete_config(base.checkpoint.config), complete_config(model.checkpoint.config)
    for key in CONSTANTS:
        if ours.get(key) != theirs.get(key):
            yield _warning(f"{name}: {key} is {theirs.get(key)}, the base's {ours.get(key)} will be used")
    if _rope(ours) != _rope(theirs):
        yield _warning(f"{name}: its rope is {_rope(theirs)}, the base's {_rope(ours)} will be used")
    rows, base_rows = _rows(model.checkpoint), _rows(base.checkpoint)
    if rows != base_rows:
        yield _warning(f"{name}: {rows} embedding rows, the base has {base_rows}; the base's are taken")
    yield from _tokenizers(base, name, model.checkpoint.folder, compare)


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope constants, whichever way a config.json spells them."""
    found = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        found |= dict(config.get(key) or {})
    found["rope_type"] = found.pop("type", None) or found.get("rope_type") or "default"
    return found


def _rows(checkpoint: Checkpoint) -> int | None:
    embedding = checkpoint.source.tensors.get("model.embed_tokens.weight")
    return embedding.n_rows if embedding else None


def _tokenizers(base: DenseModel, name: str, folder: Path, compare: CompareTokenizers) -> Iterator[Finding]:
    """Say how a tokenizer differs from the base's, and what that means for the expert."""
    for difference in compare(folder, base.checkpoint.folder):
        what = WHAT_THEN[difference.kind].format(rows=_rows(base.checkpoint))
        if difference.kind is DifferenceKind.UNREADABLE:
            yield _warning(f"{what}: {difference.text}")
        else:
            yield _warning(f"{name}: its tokenizer differs: {difference.text}; {what}")


def _dtypes(recipe: Recipe, models: Models) -> Iterator[Finding]:
    target = out_dtype(recipe, models[recipe.base_model])
    for model in models.values():
        stored = {info.dtype for name, info in model.checkpoint.source.tensors.items() if name.endswith("_proj.weight")}
        for dtype in sorted(stored):
            if loss := LOSSES.get((dtype, target or dtype)):
                yield _warning(f"{model.label} is stored as {dtype}; writing {target} loses {loss}")


def _licenses(models: Models) -> Iterator[Finding]:
    licenses = {model.label: license_of(model.checkpoint.folder) for model in models.values()}
    licenses |= {model.reference.lora: license_of(model.lora.folder) for model in models.values() if model.lora}
    known = {name: said for name, said in licenses.items() if said}
    if len(set(known.values())) > 1:
        yield _warning("licences differ: " + ", ".join(f"{name}: {said}" for name, said in known.items()))


def _base_tokenizer(base: DenseModel) -> Iterator[Finding]:
    if not has_tokenizer(base.checkpoint.folder):
        yield _warning(f"{base.label}: the base has no tokenizer, so the merge will have none")


def _adapters(models: Models) -> Iterator[Finding]:
    for model in models.values():
        lora, name = model.lora, model.reference.lora
        if lora is None:
            continue
        within = [weight for weight in lora.factors if weight.split(".")[-2] in PARTS]
        elsewhere = [weight for weight in lora.factors if weight.split(".")[-2] not in PARTS] + list(lora.ignored)
        if elsewhere:
            more = f"{len(elsewhere)} tensors" if len(elsewhere) > 1 else "a tensor"
            yield _warning(
                f"adapter {name} also changes {more} outside the MLPs ({elsewhere[0]}"
                f"{', ...' if len(elsewhere) > 1 else ''}), which no expert takes over"
            )
        if not any(changes(lora, weight) for weight in within):
            yield _warning(
                f"adapter {name} changes no weight of an MLP: its expert is {model.reference.model} as it is"
            )
