"""The merges that are compared with mergekit's: models, recipe and gates of each, for the goldens and for the tests."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .tiny_models import LLAMA3_ROPE, Dense, write_dense

PROMPTS = (
    ["The capital of France is", "sea shells on the sea shore"],
    ["def main(): return 0 for the file", "None"],
    ["Über allen Gipfeln ist Ruh"],
)


@dataclass(frozen=True)
class Case:
    """One merge: the base, how many experts (each of another seed), and the recipe's further fields."""

    base: Dense
    n_expert: int = 3
    expert_dtype: str | None = None
    architecture: str | None = None
    dtype: str | None = None
    shared: bool = False
    residual_scale: float | None = None
    negative: bool = False


CASES = {
    "mixtral-mistral": Case(Dense("mistral")),
    "mixtral-llama-tied": Case(Dense(tied=True, rope=tuple(LLAMA3_ROPE.items()), dtype="F32"), dtype="bfloat16"),
    "mixtral-llama-f16": Case(Dense(), expert_dtype="F32", dtype="float16", negative=True),
    "mixtral-llama-residual": Case(Dense(), n_expert=2, residual_scale=0.3),
    "mixtral-llama-undeclared": Case(Dense(dtype="F32", says_dtype=False)),
    "deepseek": Case(Dense(), architecture="deepseek"),
    "deepseek-shared": Case(Dense("mistral"), architecture="DeepSeek MoE", shared=True),
    "qwen2": Case(Dense("qwen2", tied=True), shared=True),
    "qwen2-llama": Case(Dense(), architecture="qwen", shared=True),
    "qwen3": Case(Dense("qwen3", tied=True)),
}


def write_case(folder: Path, case: Case) -> Path:
    """Write the models and the recipe of a case; return the recipe's path."""
    base = write_dense(folder / "base", case.base)
    experts: list[dict[str, Any]] = []
    for index in range(case.n_expert):
        dtype = case.expert_dtype or case.base.dtype
        dense = Dense(**{**case.base.__dict__, "seed": 10 + index, "dtype": dtype})
        path = write_dense(folder / f"expert-{index}", dense)
        experts.append({"source_model": str(path), "positive_prompts": PROMPTS[index]})
    if case.residual_scale is not None:
        experts[-1]["residual_scale"] = case.residual_scale
    if case.negative:
        experts[0]["negative_prompts"] = ["Whatever the weather"]
    recipe: dict[str, Any] = {"base_model": str(base), "gate_mode": "hidden", "experts": experts}
    for key in ("architecture", "dtype"):
        if value := getattr(case, key):
            recipe[key] = value
    if case.shared:
        shared: dict[str, Any] = {"source_model": str(base)}
        if not case.architecture or "qwen" in case.architecture:
            shared["positive_prompts"] = ["the"]
        recipe["shared_experts"] = [shared]
    path = folder / "recipe.yml"
    path.write_text(json.dumps(recipe))
    return path


def gates_of(case: Case) -> np.ndarray:
    """Return the gates that are passed in: float32 [n_layer, n_expert + 1, n_embd], the last a shared expert's."""
    shape = (case.base.n_layer, case.n_expert + 1, case.base.n_embd)
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


# Adapters by name: the base's dtype, and how `write_lora` makes the adapter.
LORAS: dict[str, tuple[str, dict[str, Any]]] = {
    "bf16": ("BF16", {}),
    "f32": ("F32", {"dtype": "F32"}),
    "f16-rslora": ("F16", {"use_rslora": True, "rank": 8}),
    "bf16-patterns": ("BF16", {"alpha_pattern": {"down_proj": 16}}),
}
