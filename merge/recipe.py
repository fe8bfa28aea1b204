"""Merge recipes: mergekit-moe's YAML or a `[models.NAME]` table of models.toml in, a frozen Recipe out.

Nothing is opened here: only what the recipe says is read and checked.

Long because every field of one format is read and checked here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..formats.errors import RecipeError
from ..formats.words import count
from .fields import Where, check_keys, integer, number, strings, table, tables, text

PROMPTED_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed")
RANDOM_MODES = ("random", "uniform_random")
GATE_MODES = (*PROMPTED_MODES, *RANDOM_MODES, "calibrated")
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}

# What says that a recipe is for mergekit-yaml, and what mergekit-moe ignores beside its own keys.
DENSE_RECIPE_KEYS = ("merge_method", "slices", "models", "modules")
IGNORED_KEYS = ("merge_method", "parameters", "tokenizer_source", "tokenizer", "chat_template", "out_dtype")
RECIPE_KEYS = (
    "base_model",
    "experts",
    "shared_experts",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "architecture",
    "seed",
)
EXPERT_KEYS = (
    "source_model",
    "positive_prompts",
    "negative_prompts",
    "positive_texts",
    "noise_scale",
    "residual_scale",
    "name",
)


@dataclass(frozen=True)
class ModelReference:
    """A dense model and perhaps a LoRA adapter: folders or hub ids, perhaps with a hub's revision."""

    model: str
    lora: str | None = None
    revision: str | None = None
    lora_revision: str | None = None

    def __str__(self) -> str:
        model = f"{self.model}@{self.revision}" if self.revision else self.model
        if self.lora is None:
            return model
        return f"{model}+{self.lora}@{self.lora_revision}" if self.lora_revision else f"{model}+{self.lora}"


@dataclass(frozen=True)
class Expert:
    """One expert of every layer: whose MLP it takes, and what should be routed to it."""

    source_model: ModelReference
    name: str
    positive_prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    positive_texts: tuple[str, ...] = ()
    noise_scale: float | None = None
    residual_scale: float | None = None


@dataclass(frozen=True)
class Recipe:
    """What to merge. `folder` is where relative paths start; `source` is the recipe's own text.

    `ignored` are keys of other recipes, which mean nothing to a mixture.
    """

    name: str
    folder: Path
    base_model: ModelReference
    experts: tuple[Expert, ...]
    shared_experts: tuple[Expert, ...] = ()
    gate_mode: str = "hidden"
    dtype: str | None = None
    experts_per_token: int = 2
    architecture: str | None = None
    seed: int = 0
    source: str = ""
    ignored: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[ModelReference, ...]:
        """The base and every expert's model, each once, in the recipe's order."""
        every = [self.base_model, *(e.source_model for e in (*self.experts, *self.shared_experts))]
        return tuple(dict.fromkeys(every))


def read_recipe(path: Path) -> Recipe:
    """Read a mergekit-moe YAML file.

    Raises RecipeError: not YAML, an unknown key, a missing or wrong value (see `recipe_from_table`).
    """
    import yaml

    try:
        source = path.read_text(encoding="utf-8-sig")
        content = yaml.load(source, _strict_loader())  # noqa: S506 (a SafeLoader that refuses more)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text (byte {error.start}), so it is no recipe") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{path}{line}: not valid YAML: {problem}") from error
    except RecursionError as error:
        raise RecipeError(f"{path}: nested too deeply to be a recipe") from error
    except ValueError as error:
        raise RecipeError(f"{path}: not valid YAML: {error}") from error
    recipe = _recipe(table(content, Where(str(path), "the recipe")), Where(str(path), ""), path.stem, path.parent)
    return replace(recipe, source=source)


def _strict_loader() -> Any:
    """Return YAML's safe loader, which would take the last of several values for a key without a word."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f"{key.value!r} is there twice", key.start_mark
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    return StrictLoader


def find_text(recipe: Recipe, name: str) -> Path | None:
    """Return the file of one of an expert's positive_texts, beside the recipe or from here; None when there is none."""
    return next((path for path in (recipe.folder / name, Path(name)) if path.is_file()), None)


def recipe_from_table(name: str, content: Mapping[str, Any], folder: Path, where: str) -> Recipe:
    """Read the recipe's fields of a `[models.NAME]` table; `where` is the table's place for messages.

    Relative paths start at `folder`. Raises RecipeError as `read_recipe`.
    """
    recipe = _recipe(content, Where(where, f"models.{name}"), name, folder)
    return replace(recipe, source=recipe_yaml(recipe))


def recipe_yaml(recipe: Recipe) -> str:
    """Return the recipe as mergekit-moe YAML."""
    import yaml

    def expert(entry: Expert) -> dict[str, Any]:
        fields: dict[str, Any] = {"source_model": str(entry.source_model), "name": entry.name}
        for key in ("positive_prompts", "negative_prompts", "positive_texts"):
            if values := getattr(entry, key):
                fields[key] = list(values)
        for key in ("noise_scale", "residual_scale"):
            if (value := getattr(entry, key)) is not None:
                fields[key] = value
        return fields

    fields: dict[str, Any] = {"base_model": str(recipe.base_model), "gate_mode": recipe.gate_mode}
    for key in ("dtype", "architecture"):
        if value := getattr(recipe, key):
            fields[key] = value
    fields["experts_per_token"] = recipe.experts_per_token
    if recipe.seed:
        fields["seed"] = recipe.seed
    fields["experts"] = [expert(entry) for entry in recipe.experts]
    if recipe.shared_experts:
        fields["shared_experts"] = [expert(entry) for entry in recipe.shared_experts]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)


def _recipe(content: Mapping[str, Any], where: Where, name: str, folder: Path) -> Recipe:
    dense = next((key for key in DENSE_RECIPE_KEYS if key in content), None)
    if dense and "experts" not in content:
        raise RecipeError(
            f"{where.prefix}{dense} is a key of recipes for mergekit-yaml, which merge models into one dense model; a "
            "mixture's recipe has experts, and that dense model can be one of them once mergekit-yaml has made it"
        )
    ignored = tuple(key for key in content if key in IGNORED_KEYS)
    check_keys({key: value for key, value in content.items() if key not in ignored}, RECIPE_KEYS, where)
    mode = text(content, "gate_mode", where, choices=GATE_MODES) or "hidden"
    experts = tuple(
        _expert(entry, where.at(f"expert {index + 1}"))
        for index, entry in enumerate(tables(content, "experts", where, required=True))
    )
    shared = tuple(
        _expert(entry, where.at(f"shared expert {index + 1}"))
        for index, entry in enumerate(tables(content, "shared_experts", where))
    )
    dtype = text(content, "dtype", where)
    if dtype is not None and dtype.removeprefix("torch.") not in DTYPES:
        raise RecipeError(f"{where.field('dtype')} is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    used = integer(content, "experts_per_token", where)
    seed = integer(content, "seed", where) or 0
    if seed < 0:
        raise RecipeError(f"{where.field('seed')} is {seed}; it must be at least 0")
    recipe = Recipe(
        name=name,
        folder=folder,
        base_model=_reference(content, "base_model", where),
        experts=_named_apart(experts),
        shared_experts=shared,
        gate_mode=mode,
        dtype=dtype.removeprefix("torch.") if dtype else None,
        experts_per_token=2 if used is None else used,
        architecture=text(content, "architecture", where),
        seed=seed,
        ignored=ignored,
    )
    _check_counts(recipe, where)
    _check_prompts(recipe, where)
    return recipe


def _expert(entry: Mapping[str, Any], where: Where) -> Expert:
    check_keys(entry, EXPERT_KEYS, where)
    reference = _reference(entry, "source_model", where)
    return Expert(
        source_model=reference,
        name=text(entry, "name", where) or Path(reference.lora or reference.model).name,
        positive_prompts=strings(entry, "positive_prompts", where),
        negative_prompts=strings(entry, "negative_prompts", where),
        positive_texts=strings(entry, "positive_texts", where),
        noise_scale=number(entry, "noise_scale", where),
        residual_scale=number(entry, "residual_scale", where),
    )


def _named_apart(experts: Sequence[Expert]) -> tuple[Expert, ...]:
    """Number the names that occur twice, so that reports can tell the experts apart."""
    names = [expert.name for expert in experts]
    return tuple(
        replace(expert, name=f"{expert.name}-{names[: index + 1].count(expert.name)}")
        if names.count(expert.name) > 1
        else expert
        for index, expert in enumerate(experts)
    )


def _reference(content: Mapping[str, Any], key: str, where: Where) -> ModelReference:
    """Parse `model`, `model@revision`, `model+lora`, or mergekit's mapping {model: ..., lora: ...}."""
    value = content.get(key)
    if isinstance(value, Mapping):
        inner = where.at(key)
        check_keys(value, ("model", "lora"), inner)
        model, revision = _path(value.get("model"), inner.field("model"))
        lora, lora_revision = _path(value["lora"], inner.field("lora")) if value.get("lora") else (None, None)
        return ModelReference(model, lora, revision, lora_revision)
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{where.field(key)} is missing; it names a model's folder or hub id")
    chunks = value.strip().split("+")
    if len(chunks) > 2:
        raise RecipeError(f"{where.field(key)}: {value!r} has more than one '+'; write {{model: ..., lora: ...}}")
    model, revision = _path(chunks[0], where.field(key))
    lora, lora_revision = _path(chunks[1], where.field(key)) if len(chunks) == 2 else (None, None)
    return ModelReference(model, lora, revision, lora_revision)


def _path(value: Any, where: str) -> tuple[str, str | None]:
    if isinstance(value, Mapping) and isinstance(value.get("path"), str) and set(value) <= {"path", "revision"}:
        if not isinstance(revision := value.get("revision"), str | None):
            raise RecipeError(f"{where}: the revision is {revision!r}, not text; quote it")
        return value["path"], revision
    if not isinstance(value, str) or not value.strip():
        raise RecipeError(f"{where} names no model: a folder or a hub id is needed")
    path, _, revision = value.strip().partition("@")
    if not path or "@" in revision:
        raise RecipeError(f"{where}: {value!r} is not a model; write path, owner/name or owner/name@revision")
    return path, revision or None


def _check_counts(recipe: Recipe, where: Where) -> None:
    if recipe.experts_per_token < 1:
        raise RecipeError(f"{where.field('experts_per_token')} is {recipe.experts_per_token}; it must be at least 1")
    if len(recipe.experts) < recipe.experts_per_token:
        raise RecipeError(
            f"{where.prefix}{count(len(recipe.experts), 'expert')} for "
            f"{recipe.experts_per_token} experts per token; "
            "add experts or lower experts_per_token"
        )


def _check_prompts(recipe: Recipe, where: Where) -> None:
    """Refuse experts that the gate mode cannot tell apart, as mergekit does."""
    if recipe.gate_mode in RANDOM_MODES:
        return
    for index, expert in enumerate(recipe.experts):
        if not expert.positive_prompts and not (recipe.gate_mode == "calibrated" and expert.positive_texts):
            wanted = "positive_texts" if recipe.gate_mode == "calibrated" else "positive_prompts"
            raise RecipeError(
                f"{where.prefix}expert {index + 1} ({expert.name}) has no {wanted}, "
                f"which gate_mode {recipe.gate_mode} needs"
            )
    said = {(e.positive_prompts, e.negative_prompts, e.positive_texts) for e in recipe.experts}
    if len(recipe.experts) > 1 and len(said) == 1:
        raise RecipeError(
            f"{where.prefix}all experts have the same prompts, so nothing could tell them apart; "
            "give each its own, or use gate_mode: random and train the router"
        )
    if len({bool(e.positive_prompts) for e in recipe.shared_experts}) > 1:
        raise RecipeError(f"{where.prefix}give prompts to all shared experts or to none")
