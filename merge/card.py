"""The README.md of a merged checkpoint: a recipe comes in, a model card with its metadata goes out."""

from ..formats.checkpoint import Checkpoint
from .recipe import Expert, Recipe


def merge_card(recipe: Recipe, merged: Checkpoint) -> str:
    """Return the model card of a merge: what it is made of, and the recipe itself."""
    from huggingface_hub import ModelCardData

    metadata = ModelCardData(
        library_name="transformers",
        tags=["merge", "moe", "mergekit"],
        base_model=[parent.repo for parent in merged.parents if parent.repo] or None,
        license=merged.license,
    )
    experts = "\n".join(_line(expert) for expert in recipe.experts)
    shared = "".join(f"\nShared by every token:\n\n{_line(expert)}\n" for expert in recipe.shared_experts)
    return f"""---
{metadata.to_yaml()}
---
# {recipe.name}

A mixture of {len(recipe.experts)} experts, {recipe.experts_per_token} used for each token, merged with moe-gguf.
Attention, norms and embeddings are those of {recipe.base_model}; each expert is the MLP of one model:

{experts}
{shared}
The routers were made in the mode `{recipe.gate_mode}`. The recipe:

```yaml
{recipe.source.strip()}
```
"""


def _line(expert: Expert) -> str:
    return f"* {expert.name}: {expert.source_model}"
