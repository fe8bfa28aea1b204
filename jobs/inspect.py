"""What is in a GGUF file, a checkpoint or a catalogue model, from headers alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import MoeGgufError
from .sources import ModelSource, SourceKind, catalogue_model, gguf_of, not_here, resolve_source

if TYPE_CHECKING:
    from ..formats.checkpoint import Checkpoint
    from ..models.summary import Share, Summary, TensorFacts
    from ..models.tensor_types import TensorShape

DEFAULT_CTX = 4096


@dataclass(frozen=True)
class Request:
    """A GGUF file, a checkpoint folder, a recipe or a name of `catalogue`; `n_ctx` 0 is what it was trained for."""

    model: str | Path | None
    catalogue: Path | None = None
    n_ctx: int = DEFAULT_CTX


@dataclass(frozen=True)
class Report:
    """What `inspect --json` prints (docs/inspect.md): the shape is stable, and documented there key by key."""

    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the facts."""
        return dict(self.facts)


def run(request: Request) -> Report:
    """Read the headers and report on them. Raises MoeGgufError for what is no model."""
    return Report(inspect_model(request.model, request.n_ctx, request.catalogue))


def inspect_model(
    argument: str | Path | None, n_ctx: int = DEFAULT_CTX, catalogue: Path | None = None
) -> dict[str, Any]:
    """Return the report on a model as `--json` prints it (docs/inspect.md).

    A catalogue name means its GGUF file, or while there is none, what that would be made from.
    """
    if argument is None or not Path(argument).exists():
        made = gguf_of(catalogue_model(None if argument is None else str(argument), catalogue))
        if made:
            return report_gguf(made, n_ctx)
    source = resolve_source(argument, catalogue)
    if source.kind is SourceKind.GGUF and source.path:
        return report_gguf(source.path, n_ctx)
    return report_described(source, n_ctx)


def report_gguf(path: Path, n_ctx: int) -> dict[str, Any]:
    """Return the report on a GGUF file."""
    from ..formats.gguf_file import read_gguf
    from ..models.gguf_kind import FOR, GgufKind, kind_of_gguf
    from ..models.pre_tokenizers import pre_tokenizer_warning
    from ..models.summary import summarize_gguf

    file = read_gguf(path)
    summary = summarize_gguf(file)
    notes = []
    kind = kind_of_gguf(file)
    if kind is not GgufKind.MODEL:
        notes.append(f"this file is {kind}, not a model that can be run; {FOR[kind]}.")
    if summary.lone_experts:
        notes.append(
            "each expert is a tensor of its own, as before April 2024; llama.cpp loads no such file any more, "
            "and quantizations of that time were of a worse mixture. Convert the original checkpoint again."
        )
    if kind is GgufKind.MODEL and (warning := pre_tokenizer_warning(file.metadata)):
        notes.append(f"{warning}.")
    layout = "one tensor per expert" if summary.lone_experts else "stacked"
    return report_summary(summary, "GGUF", path, file.shards, n_ctx, layout, notes)


def report_described(source: ModelSource, n_ctx: int) -> dict[str, Any]:
    """Return the report on a checkpoint or a recipe: what its GGUF would hold, in the types of the source."""
    from ..convert.build_plan import build_plan
    from ..models.summary import summarize_plan

    checkpoint = open_described(source)
    plan = build_plan(checkpoint)
    path = source.path or Path(source.where)
    files = tuple(sorted(path.glob("*.safetensors"))) if path.is_dir() else ()
    fused = any(name.endswith(".gate_up_proj") for name in checkpoint.source.tensors)
    layout = "fused" if fused else "per expert"
    return report_summary(summarize_plan(plan), str(source.kind), path, files, n_ctx, layout, list(plan.warnings))


def open_described(source: ModelSource) -> "Checkpoint":
    """Open a checkpoint folder, or the checkpoint that a recipe of local models stands for (gates left open)."""
    from ..formats.checkpoint import open_checkpoint
    from ..merge.open import open_recipe
    from .opening import recipe_of

    if source.kind is SourceKind.CHECKPOINT and source.path:
        return open_checkpoint(source.path)
    if source.kind is not SourceKind.RECIPE:
        raise not_here(source)

    def refuse(repo: str, revision: str | None) -> Path:
        raise not_here(source)

    return open_recipe(replace(recipe_of(source), gate_mode="random"), fetch=refuse)


def report_memory(summary: "Summary", kind: str, n_ctx: int) -> dict[str, Any]:
    """Return the memory that each quantization needs: weights by the types it would choose, and the KV cache.

    Types that need an importance matrix are counted as if there were one.
    """
    from ..formats.gguf_file import tensor_bytes
    from ..quantize.facts import facts_of
    from ..quantize.file_types import FILE_TYPES
    from ..quantize.mixes import choose_types
    from ..quantize.stock_policy import stock

    kv_bytes, tensors = summary.kv_bytes(n_ctx), unquantized(summary)
    rows = []
    for file_type in FILE_TYPES:
        if file_type.qtype is None:
            continue
        try:
            facts = facts_of(summary.metadata, (one.name for one in summary.tensors))
            choices = choose_types(facts, tensors, stock(file_type), has_imatrix=file_type.needs_imatrix)
        except MoeGgufError:
            continue
        n_bytes = sum(tensor_bytes(choice.shape, choice.qtype) for choice in choices)
        if kind == "GGUF" and file_type.name == summary.file_type:
            n_bytes = summary.n_bytes
        rows.append(
            {
                "type": file_type.name,
                "weights_bytes": n_bytes,
                "bpw": round(8 * n_bytes / summary.n_params, 4) if summary.n_params else 0.0,
                "total_bytes": n_bytes + kv_bytes if kv_bytes is not None else None,
            }
        )
    return {"n_ctx": n_ctx, "kv_type": "F16", "kv_bytes": kv_bytes, "quantizations": rows}


def unquantized(summary: "Summary") -> "list[TensorShape]":
    """Return the tensors as a 16-bit conversion has them: F32 where every file has it, else BF16."""
    from gguf.constants import GGMLQuantizationType

    from ..models.tensor_roles import reason_to_keep
    from ..models.tensor_types import TensorShape

    shapes = [TensorShape(one.name, one.shape, GGMLQuantizationType.F32) for one in summary.tensors]
    return [
        shape if reason_to_keep(shape, summary.architecture) else replace(shape, qtype=GGMLQuantizationType.BF16)
        for shape in shapes
    ]


def report_summary(
    summary: "Summary",
    kind: str,
    path: Path,
    files: tuple[Path, ...],
    n_ctx: int,
    expert_layout: str,
    notes: list[str],
) -> dict[str, Any]:
    """Return the report on a model's facts."""
    from gguf.constants import Keys

    n_ctx_train = summary.number(Keys.LLM.CONTEXT_LENGTH) or None
    if n_ctx_train and n_ctx > n_ctx_train:
        notes = [*notes, f"{n_ctx} tokens of context are more than the {n_ctx_train} the model was trained for."]
    tokens = summary.metadata.get(Keys.Tokenizer.LIST)
    template = summary.template_kind
    return {
        "path": str(path),
        "kind": kind,
        "files": [str(file) for file in files],
        "name": summary.name,
        "architecture": summary.architecture,
        "file_type": summary.file_type if kind == "GGUF" else next(iter(summary.by_type()), None),
        "bytes": summary.n_bytes,
        "bpw": round(summary.bits_per_weight, 4),
        "parameters": {
            "total": summary.n_params,
            "active": summary.n_active_params,
            "experts": summary.n_expert_params,
            "dense": summary.n_dense_params,
        },
        "n_layer": summary.n_layer,
        "n_embd": summary.number(Keys.LLM.EMBEDDING_LENGTH) or None,
        "n_ff": summary.number(Keys.LLM.EXPERT_FEED_FORWARD_LENGTH)
        or summary.number(Keys.LLM.FEED_FORWARD_LENGTH)
        or None,
        "n_head": summary.number(Keys.Attention.HEAD_COUNT) or None,
        "n_head_kv": summary.number(Keys.Attention.HEAD_COUNT_KV) or None,
        "n_ctx_train": n_ctx_train,
        "n_expert": summary.n_expert,
        "n_expert_used": summary.n_expert_used,
        "expert_layout": expert_layout if summary.n_expert else None,
        "tokenizer": {
            "model": summary.text(Keys.Tokenizer.MODEL),
            "pre": summary.text(Keys.Tokenizer.PRE),
            "tokens": len(tokens) if isinstance(tokens, list) else 0,
        },
        "chat_template": {"kind": template} if template else None,
        "roles": _shares("role", summary.by_role()),
        "types": _shares("type", summary.by_type()),
        "memory": report_memory(summary, kind, n_ctx or n_ctx_train or DEFAULT_CTX),
        "notes": notes,
        "tensors": [_tensor(one) for one in summary.tensors],
    }


def _tensor(one: "TensorFacts") -> dict[str, Any]:
    role, qtype = str(one.role), one.qtype.name
    return {"name": one.name, "shape": list(one.shape), "type": qtype, "bytes": one.n_bytes, "role": role}


def _shares(key: str, shares: Mapping[Any, "Share"]) -> list[dict[str, Any]]:
    return [
        {
            key: str(one),
            "tensors": share.n_tensors,
            "parameters": share.n_weights,
            "bytes": share.n_bytes,
            "bpw": round(share.bits_per_weight, 4),
        }
        for one, share in shares.items()
    ]
