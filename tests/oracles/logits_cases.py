"""The checkpoints and the tokens whose logits transformers computed; the oracle and the test share them."""

from dataclasses import replace

from ..checkpoints import Tiny
from .cases import LINEAR, LLAMA3, YARN

TOKENS = (1, 72, 300, 5, 19, 19, 257, 101, 64, 7, 310, 2)
SMALL = Tiny(n_vocab=320, dtype="F32", n_embd=32, n_ff=48, n_head=4, n_head_kv=2)


def variant(**changes: object) -> Tiny:
    """Return SMALL with some of its fields replaced."""
    return replace(SMALL, **changes)  # pyright: ignore[reportArgumentType]


LOGITS: dict[str, Tiny] = {
    "classic, 2 of 4": SMALL,
    "fused, 2 of 4": variant(layout="fused", seed=2),
    "1 of 3": variant(n_expert=3, n_expert_used=1, layout="fused", seed=3),
    "1 of 4": variant(n_expert_used=1, seed=4),
    "2 of 5, tied, one key for all heads": variant(n_expert=5, n_head_kv=1, tied=True, seed=5),
    "2 of 2, wide heads": variant(n_expert=2, n_head_kv=4, head_dim=16, spelling="new", seed=6),
    "BF16": variant(dtype="BF16", layout="fused", seed=7),
    "llama3 rope": variant(scaling=LLAMA3, rope_theta=500000.0, spelling="new", seed=8),
    "linear rope": variant(scaling=LINEAR, seed=9),
    "olmoe, 2 of 4": variant(layout="olmoe", n_head_kv=4, seed=12),
    "granite moe, 2 of 4": variant(layout="granitemoe", seed=13),
    "granite moe, shared, 1 of 3": variant(layout="granitemoeshared", n_expert=3, n_expert_used=1, tied=True, seed=14),
    "yarn rope": variant(scaling=YARN, head_dim=8, seed=10),
}
DENSE = variant(layout="dense", identical_experts=True, seed=11)
UPCYCLED = variant(layout="fused", identical_experts=True, seed=11)
