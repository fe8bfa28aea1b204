"""The merge doctor: an opened recipe comes in, what is wrong or doubtful about it goes out, before anything is written.

Reads headers, tokenizers, and a few rows of every expert tensor; never the whole weights.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from ..formats.checkpoint import Checkpoint
from .families import PARTS, complete_config
from .folders import chat_template, license_of, token_ids
from .models import DenseModel
from .open import Models, family_of, out_dtype
from .recipe import RANDOM_MODES, Recipe

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
SAMPLED_ROWS = 4


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found; an error stops the merge."""

    is_error: bool
    text: str


def examine(recipe: Recipe, models: Models, merged: Checkpoint) -> list[Finding]:
    """Return all findings about a recipe, its opened models and the mixture they give (classic), errors first."""
    findings = [
        *_alike(recipe, merged),
        *_prompts(recipe),
        *_unused(recipe, models),
        *(finding for model in models.values() for finding in _compare(models[recipe.base_model], model)),
        *_dtypes(recipe, models),
        *_licenses(models),
        *_adapters(models),
    ]
    return sorted(dict.fromkeys(findings), key=lambda finding: not finding.is_error)


def _error(text: str) -> Finding:
    return Finding(True, text)


def _warning(text: str) -> Finding:
    return Finding(False, text)


def _alike(recipe: Recipe, merged: Checkpoint) -> Iterator[Finding]:
    """Find experts with the same weights, by a hash over rows of each of their tensors."""
    digests: dict[str, list[str]] = {}
    for index, expert in enumerate(recipe.experts):
        digests.setdefault(_digest(merged, index), []).append(expert.name)
    for names in digests.values():
        if len(names) == len(recipe.experts) > 1 and recipe.gate_mode not in RANDOM_MODES:
            yield _error(
                f"all experts have the same weights ({', '.join(names)}): the mixture would be the one model, slower; "
                "to train it afterwards use gate_mode: random"
            )
        elif len(names) > 1:
            yield _warning(f"experts {', '.join(names)} have the same weights")
    for expert in recipe.experts:
        if expert.source_model == recipe.base_model:
            yield _warning(f"expert {expert.name} is the base itself")


def _digest(merged: Checkpoint, index: int) -> str:
    """Hash a few rows of each MLP tensor of an expert as it will be written: training leaves no tensor as it was."""
    digest = blake2b(digest_size=16)
    for name, info in merged.source.tensors.items():
        if f".experts.{index}." in name:
            for start in {0, max(0, info.n_rows // 2 - 1), max(0, info.n_rows - SAMPLED_ROWS)}:
                rows = merged.source.read_rows(name, start, min(start + SAMPLED_ROWS, info.n_rows))
                digest.update(rows.tobytes())
    return digest.hexdigest()


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
            yield _error(f"{checkpoint.name} has tensors that {family.name} has no place for: {which}")


def _compare(base: DenseModel, model: DenseModel) -> Iterator[Finding]:
    """Compare an expert's model with the base, whose attention, embeddings and tokenizer the mixture takes."""
    if model.checkpoint.folder == base.checkpoint.folder:
        return
    name = model.checkpoint.name
    ours, theirs = complete_config(base.checkpoint.config), complete_config(model.checkpoint.config)
    for key in CONSTANTS:
        if ours.get(key) != theirs.get(key):
            yield _warning(f"{name}: {key} is {theirs.get(key)}, the base's {ours.get(key)} will be used")
    if _rope(ours) != _rope(theirs):
        yield _warning(f"{name}: its rope is {_rope(theirs)}, the base's {_rope(ours)} will be used")
    yield from _vocabularies(base.checkpoint, model.checkpoint)
    one, other = chat_template(base.checkpoint.folder), chat_template(model.checkpoint.folder)
    if one != other:
        has = "another chat template" if one and other else "a chat template" if other else "no chat template"
        yield _warning(f"{name}: has {has}; the base's {'one ' if one else 'none '}will be used")


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope constants, whichever way a config.json spells them."""
    found = {"rope_theta": config.get("rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        found |= dict(config.get(key) or {})
    found["rope_type"] = found.pop("type", None) or found.get("rope_type") or "default"
    return found


def _vocabularies(base: Checkpoint, model: Checkpoint) -> Iterator[Finding]:
    embed = "model.embed_tokens.weight"
    ours, theirs = (one.source.tensors[embed].n_rows if embed in one.source.tensors else None for one in (base, model))
    if ours != theirs:
        yield _warning(f"{model.name}: {theirs} embedding rows, the base has {ours}; the base's are taken")
    known, other = token_ids(base.folder), token_ids(model.folder)
    if known is None or other is None or known == other:
        return
    extra = [token for token in other if token not in known]
    moved = [token for token, number in other.items() if token in known and known[token] != number]
    missing = [token for token in known if token not in other]
    for tokens, what in ((moved, "other ids for"), (extra, "tokens that the base lacks:"), (missing, "no")):
        if tokens:
            shown = ", ".join(map(repr, tokens[:5])) + (f" and {len(tokens) - 5} more" if len(tokens) > 5 else "")
            yield _warning(f"{model.name}: its tokenizer has {what} {shown}")


def _dtypes(recipe: Recipe, models: Models) -> Iterator[Finding]:
    target = out_dtype(recipe, models[recipe.base_model])
    for model in models.values():
        stored = {info.dtype for name, info in model.checkpoint.source.tensors.items() if name.endswith("_proj.weight")}
        for dtype in sorted(stored):
            if loss := LOSSES.get((dtype, target or dtype)):
                yield _warning(f"{model.checkpoint.name} is stored as {dtype}; writing {target} loses {loss}")


def _licenses(models: Models) -> Iterator[Finding]:
    licenses = {model.checkpoint.name: license_of(model.checkpoint.folder) for model in models.values()}
    licenses |= {model.lora.name: license_of(model.lora.folder) for model in models.values() if model.lora}
    known = {name: said for name, said in licenses.items() if said}
    if len(set(known.values())) > 1:
        yield _warning("licences differ: " + ", ".join(f"{name}: {said}" for name, said in known.items()))


def _adapters(models: Models) -> Iterator[Finding]:
    for model in models.values():
        if model.lora is None:
            continue
        elsewhere = [name for name in model.lora.factors if ".mlp." not in name] + list(model.lora.ignored)
        if elsewhere:
            yield _warning(
                f"adapter {model.lora.name} also changes {len(elsewhere)} tensors outside the MLPs "
                f"({elsewhere[0]}, ...), which no expert takes over"
            )
