"""Merges whose routing llama.cpp's graphs may compute otherwise: for the goldens of tests/oracles and for the tests."""

from dataclasses import dataclass
from typing import Any

from .cases import CASES, Case
from .tiny_models import LLAMA3_ROPE, Dense

TOKENS = [5, 77, 140, 9, 301, 42, 488, 200]


@dataclass(frozen=True)
class Routing:
    """A merge, and what of its config.json is changed; `graph` is the architecture that its GGUF should get."""

    case: Case
    changes: tuple[tuple[str, Any], ...]
    graph: str

    @property
    def overrides(self) -> dict[str, Any]:
        """The keys of config.json that are changed."""
        return dict(self.changes)


def _used(n_expert_used: int, **others: Any) -> tuple[tuple[str, Any], ...]:
    return (("num_experts_per_tok", n_expert_used), *others.items())


SHARED = CASES["deepseek-shared"]
TIED = Case(Dense(tied=True, rope=tuple(LLAMA3_ROPE.items())), architecture="deepseek", shared=True)
LINEAR = Case(Dense(rope=(("rope_type", "linear"), ("factor", 2.0))), architecture="deepseek", shared=True)
# What llama.cpp computes right.
SAME = {
    "qwen2, 2 of 3, not renormalized": Routing(CASES["qwen2"], _used(2, norm_topk_prob=False), "qwen2moe"),
    "qwen2, 3 of 3": Routing(CASES["qwen2"], _used(3), "qwen2moe"),
    "qwen2-llama, 3 of 3": Routing(CASES["qwen2-llama"], _used(3), "qwen2moe"),
    "deepseek, 2 of 3": Routing(CASES["deepseek"], _used(2), "llama"),
    "deepseek-shared, 2 of 3": Routing(SHARED, _used(2), "granitemoe"),
    "deepseek-shared, 1 of 3": Routing(SHARED, _used(1), "deepseek"),
    "deepseek-shared, 2 of 3, not renormalized": Routing(SHARED, _used(2, norm_topk_prob=False), "deepseek"),
    "deepseek-shared, 1 of 3, linear rope": Routing(LINEAR, _used(1), "deepseek"),
    "deepseek-shared, tied, llama3 rope": Routing(TIED, _used(2), "granitemoe"),
}
# What it does not: the routing has to be changed while it computes.
OTHERWISE = {
    "qwen2, 2 of 3": Routing(CASES["qwen2"], _used(2), "qwen2moe"),
    "qwen2-llama, 2 of 3": Routing(CASES["qwen2-llama"], _used(2), "qwen2moe"),
    "deepseek, 1 of 3": Routing(CASES["deepseek"], _used(1), "llama"),
    "qwen3, 2 of 3, not renormalized": Routing(CASES["qwen3"], _used(2, norm_topk_prob=False), "qwen3moe"),
}
ROUTINGS = {**SAME, **OTHERWISE}
