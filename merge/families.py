"""The kinds of mixture a merge can become: which dense models each takes, its tensor names and its config.json.

Everything comes from the records of models/families; here a merge chooses one and reads its names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf.constants import MODEL_TENSOR

from ..formats.errors import RecipeError
from ..models.families import FAMILIES
from ..models.families.parts import LAYER
from ..models.family import Count, Family, Mixture

# Fields whose defaults a merge writes out, in the order in which it writes them.
DEFAULTED = ("rms_norm_eps", "n_ctx", "n_head_kv", "head_dim", "rope_theta")
PARTS = ("gate_proj", "up_proj", "down_proj")
DENSE = {family.model_type: family for family in FAMILIES.values() if family.dense and not family.experts}


@dataclass(frozen=True)
class Layout:
    """Names within `model.layers.N.`: `experts` maps each MLP part to a name with {expert}, or fuses them.

    A fused layout has `gate_up` [n_expert, 2 * n_ff, n_embd] (gate first) and `down` [n_expert, n_embd, n_ff].
    """

    router: str
    experts: Mapping[str, str] | None = None
    gate_up: str = ""
    down: str = ""


@dataclass(frozen=True)
class MixtureKind:
    """A family that merges can become, with the names that a merge needs, all within a layer.

    `biases_wanted` are attention biases that it cannot do without: zeros where the base has none.
    """

    family: Family
    mixture: Mixture
    layer_tensors: tuple[str, ...]
    classic: Layout
    fused: Layout | None
    shared_expert: str
    shared_gate: str
    biases_wanted: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its model type ("qwen2_moe")."""
        return self.family.model_type


def kind_of(family: Family, mixture: Mixture) -> MixtureKind:
    """Return what a merge needs to know of a family."""
    rules = [(rule, _within(rule.hf_names[0])) for rule in family.attention]
    # the order in which mergekit writes them
    norms = [name for _, name in rules if name.endswith("layernorm.weight")]
    matrices = [name for rule, name in rules if len(rule.shape) == 2]
    biases = [name for rule, name in rules if rule.suffix == ".bias" and rule.tensor is not MODEL_TENSOR.ATTN_OUT]
    head_norms = [name for _, name in rules if name.endswith(("q_norm.weight", "k_norm.weight"))]
    wanted = tuple(biases) if mixture.biases else ()
    routers = [_within(name) for name in family.router[0].hf_names]
    classic = [_within(matrix.classic) for matrix in family.experts]
    beside = next(name for name in routers if name.split(".")[0] == classic[0].split(".")[0])
    gate_up, _, down = (_within(matrix.fused[0]) for matrix in family.experts)
    shared = {rule.tensor: _within(rule.hf_names[0]) for rule in family.shared}
    return MixtureKind(
        family,
        mixture,
        layer_tensors=(*norms, *matrices, *wanted, *head_norms),
        classic=Layout(beside, dict[str, str](zip(PARTS, classic, strict=True))),
        fused=Layout(routers[0], None, gate_up, down) if mixture.fused else None,
        shared_expert=shared.get(MODEL_TENSOR.FFN_DOWN_SHEXP, "").replace("down_proj", "{part}"),
        shared_gate=shared.get(MODEL_TENSOR.FFN_GATE_INP_SHEXP, ""),
        biases_wanted=wanted,
    )


def _within(name: str) -> str:
    return name.removeprefix(LAYER)


# Mixtral where several take a model, as mergekit chooses; then those that can do without a shared expert.
KINDS = tuple(
    sorted(
        (kind_of(family, family.mixture) for family in FAMILIES.values() if family.mixture),
        key=lambda kind: (kind.mixture.n_shared[0], len(kind.mixture.n_shared)),
    )
)


def complete_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dense config.json with what transformers assumes for its model type written out.

    Its mixtures assume other things, so all of it is written.
    """
    family = DENSE.get(config.get("model_type", ""))
    full: dict[str, Any] = {}
    for key in (family.key(field) for field in DEFAULTED) if family else ():
        name = key.names[0]
        nested = key.field == "rope_theta" and "rope_theta" in (config.get("rope_parameters") or {})
        unstated = name not in config or (config[name] is None and not key.null_derives)
        if key.default is not None and not nested and (unstated or key.field != "rope_theta"):
            full[name] = key.default if unstated else config[name]
    full |= {key: value for key, value in config.items() if key not in full}
    full.setdefault("tie_word_embeddings", False)
    if full.get("num_key_value_heads") is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    if full.get("head_dim") is None and family and family.states_head_dim == "always":
        full["head_dim"] = full["hidden_size"] // full["num_attention_heads"]
    return full


def mixture_config(
    kind: MixtureKind, base: Mapping[str, Any], n_expert: int, n_used: int, n_shared: int
) -> dict[str, Any]:
    """Return the config.json of a mixture whose base has this one, completed."""
    counts = {
        Count.EXPERTS: n_expert,
        Count.USED: n_used,
        Count.SHARED: n_shared or None,
        Count.N_FF: base["intermediate_size"],
    }
    own = {key: counts[value] if isinstance(value, Count) else _thawed(value) for key, value in kind.mixture.config}
    return {**base, "architectures": [kind.family.hf_name], "model_type": kind.family.model_type, **own}


def choose_kind(model_types: Mapping[str, str], n_shared: int, architecture: str | None, where: str) -> MixtureKind:
    """Return the kind that takes these dense models' types; Mixtral where several do, as mergekit chooses.

    `model_types` are by what the recipe calls each model, the base first; `architecture` is the recipe's
    wish. Raises RecipeError when the models differ in type or nothing takes them.
    """
    base, model_type = next(iter(model_types.items()))
    others = [f"{label} is {kind}" for label, kind in model_types.items() if kind != model_type]
    if others:
        raise RecipeError(
            f"{where}: base and experts are of different architectures "
            f"({', '.join(sorted(set(model_types.values())))}): the base {base} is {model_type}, "
            f"{', '.join(others[:4])}; a mixture needs one"
        )
    candidates = [kind for kind in KINDS if model_type in kind.mixture.takes]
    if not candidates:
        known = ", ".join(sorted({one for kind in KINDS for one in kind.mixture.takes}))
        raise RecipeError(f"{where}: no mixture can be made of {model_type} models; known are {known}")
    if architecture is not None:
        wanted = _plain(architecture)
        candidates = [kind for kind in candidates if wanted in (_plain(kind.name), *kind.mixture.spellings)]
        if not candidates:
            known = ", ".join(kind.name for kind in KINDS if model_type in kind.mixture.takes)
            raise RecipeError(
                f"{where}: architecture {architecture!r} cannot be made of {model_type} models; try {known}"
            )
    fitting = [kind for kind in candidates if n_shared in kind.mixture.n_shared]
    if not fitting:
        needs = "; ".join(f"{one.name} takes {' or '.join(map(str, one.mixture.n_shared))}" for one in candidates)
        raise RecipeError(
            f"{where}: {n_shared} shared experts do not fit: {needs}; {_how_to_fit(n_shared, candidates)}"
        )
    return fitting[0]


def _how_to_fit(n_shared: int, candidates: Sequence[MixtureKind]) -> str:
    if n_shared:
        return "leave out shared_experts, or all but one"
    prompts = ", positive_prompts" if candidates[0].shared_gate else ""
    return (
        f"add shared_experts: with one entry, as the base itself: its source_model{prompts} and a residual_scale such "
        "as 0.1 (see docs/merge.md)"
    )


def _plain(architecture: str) -> str:
    return "".join(architecture.lower().split()).replace("-", "").replace("_", "")


def _thawed(value: Any) -> Any:
    """Return a constant of a record as JSON has it: () as a list, pairs as an object."""
    if not isinstance(value, tuple):
        return value
    return dict(value) if value else []
