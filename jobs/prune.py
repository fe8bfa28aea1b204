"""Experts dropped from a model: a GGUF file and texts come in, a file with the most salient experts goes out.

The experts that stay keep their bytes, quantized as they are; routers lose the others' rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import PlanError
from .compare import KEPT
from .compare_report import Report as Comparison
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest
from .rewrite import Report as Written
from .sources import resolve_gguf

if TYPE_CHECKING:
    import numpy as np

    from ..formats.gguf_file import GgufFile
    from ..measure.chunks import CalibrationText
    from ..measure.saliency import Saliency
    from ..writer.partial import Output
    from ..writer.plan import Plan, PlannedTensor

GATE_NORM, FREQUENCY = "gate-norm", "frequency"
OF_EXPERTS = re.compile(
    r"blk\.(?P<layer>[0-9]+)\.(?:ffn_(?:gate|up|down|gate_up)_exps|ffn_gate_inp|exp_probs_b)(?:\.(?:weight|bias))?"
)
BY, TOKENS = "prune.experts.by", "prune.experts.tokens"
SIZE_LABEL = re.compile(r"[0-9]+x(?P<rest>.+)")


@dataclass(frozen=True)
class Request:
    """A GGUF file or a name of `catalogue`, how many experts of each layer stay, and the file to write.

    `by` is "gate-norm" (REAP's saliency) or "frequency" (tokens). Without `texts` the one that ships is read. `whole`
    drops the same experts in all layers. `n_chunk` is the most chunks that are read, of each text that is compared
    too. `compared` are texts, (name, file), on which the result is compared with the
    model.
    """

    model: str | Path | None
    output: Path
    keep: int
    by: str = GATE_NORM
    texts: tuple[Path, ...] = ()
    compared: tuple[tuple[str, Path], ...] = ()
    catalogue: Path | None = None
    whole: bool = False
    n_ctx: int = 512
    n_chunk: int | None = None
    verify: bool = True
    force: bool = False
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """The model's header, and the texts; None for the one that ships."""

    request: Request
    file: "GgufFile"
    n_expert: int
    texts: "tuple[CalibrationText, ...] | None"


@dataclass(frozen=True)
class Report:
    """What was kept: experts [n_layer, n_keep] of `layers`, by scores [n_layer, n_expert]; and what it changed."""

    layers: tuple[int, ...]
    scores: "np.ndarray"
    tokens: "np.ndarray"
    kept: "np.ndarray"
    n_token: int
    written: Written
    comparison: Comparison | None

    def as_json(self) -> dict[str, Any]:
        """Return what `prune-experts` prints with --json."""
        layers = zip(self.layers, self.kept, self.scores, self.tokens, strict=True)
        return {
            **self.written.as_json(),
            "n_tokens": self.n_token,
            "layers": [
                {"layer": layer, "kept": kept.tolist(), "scores": scores.tolist(), "tokens": tokens.tolist()}
                for layer, kept, scores, tokens in layers
            ],
            "compare": self.comparison and self.comparison.as_json(),
        }


def prepare(request: Request) -> Prepared:
    """Read the header and the texts. Raises PlanError for what cannot be pruned so, OutputError for what is there."""
    from gguf.constants import Keys

    from ..formats.gguf_file import read_gguf
    from ..measure.chunks import CalibrationText
    from ..measure.windows import read_strict_text
    from .routes import check_output, expert_count

    file = read_gguf(resolve_gguf(request.model, request.catalogue))
    check_output(request.output, request.force)
    n_expert = expert_count(file)
    if not 0 < request.keep < n_expert:
        raise PlanError(f"{file.path}: has {n_expert} experts a layer; keep fewer of them, and at least one")
    if file.hyper(Keys.LLM.EXPERT_GROUP_COUNT, 0) > 1:
        raise PlanError(f"{file.path}: its routers choose groups of experts first, so that single ones cannot go")
    if (used := file.hyper(Keys.LLM.EXPERT_USED_COUNT, 1)) > request.keep:
        raise PlanError(f"{file.path}: uses {used} experts per token; keep as many at least")
    if odd := [name for name, tensor in file.tensors.items() if _is_odd(name, tensor.shape, n_expert)]:
        raise PlanError(f"{file.path}: {odd[0]} has experts, and it is not known how to drop them there")
    texts = tuple(CalibrationText(path.name, read_strict_text(path)) for path in request.texts)
    for _, path in request.compared:
        read_strict_text(path)
    prepared = Prepared(request, file, n_expert, texts or None)
    _demand_room(prepared)
    return prepared


def _is_odd(name: str, shape: tuple[int, ...], n_expert: int) -> bool:
    """Tell whether a tensor has experts that `pruned` would not find, or not where it looks for them."""
    if OF_EXPERTS.fullmatch(name):
        return shape[-1] != n_expert
    return "exps." in name or "tid2eid" in name


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Measure, choose, write and compare. Raises EngineError, OutputError and Interrupted."""
    from ..measure.saliency import best_experts

    request = prepared.request
    found, n_token = _measured(prepared, listener)
    scores = found.mean if request.by == GATE_NORM else found.tokens.astype(float)
    kept = best_experts(scores, request.keep, request.whole)
    written = _written(prepared, dict(zip(found.layers, kept.tolist(), strict=True)), n_token, listener)
    comparison = _compared(prepared, listener) if request.compared else None
    return Report(found.layers, scores, found.tokens, kept, n_token, written, comparison)


def _measured(prepared: Prepared, listener: Listener) -> "tuple[Saliency, int]":
    from ..measure.calibration_text import shipped_text
    from ..measure.chunks import cut_chunks
    from ..measure.saliency import find_saliency
    from .loading import opened_model
    from .scoring import going_on

    request = prepared.request
    load = replace(request.load, n_ctx=request.n_ctx, n_batch=request.n_ctx, n_seq_max=1)
    with opened_model(prepared.file.path, load, listener) as (model, options):
        chunks = cut_chunks(model, prepared.texts or (shipped_text(model),), request.n_ctx)[: request.n_chunk]
        with listener.bar(len(chunks), "measure experts", " chunks") as bar, going_on():
            return find_saliency(model, options, chunks, prepared.n_expert, bar.update), chunks.size


def _demand_room(prepared: Prepared) -> None:
    """Refuse a disk without room before the texts are read: the file has the same size whichever experts stay."""
    from ..writer.partial import PartialOutput, check_outputs, check_space

    layers = {int(name["layer"]) for tensor in prepared.file.tensors if (name := OF_EXPERTS.fullmatch(tensor))}
    plan, output = _planned(prepared, dict.fromkeys(layers, range(prepared.request.keep)), 0)
    identity = plan.source.identity()
    check_outputs([output], identity)
    check_space([PartialOutput(output, identity, prepared.request.force)])


def _planned(prepared: Prepared, kept: "Mapping[int, Sequence[int]]", n_token: int) -> "tuple[Plan, Output]":
    from ..writer.gguf_source import plan_from_gguf
    from ..writer.partial import Output
    from .rewrite import entries_of

    plan = pruned(plan_from_gguf(prepared.file), kept, prepared.n_expert, prepared.request.by, n_token)
    return plan, Output(prepared.request.output, plan.fields, entries_of(plan), "copy")


def _written(prepared: Prepared, kept: "Mapping[int, Sequence[int]]", n_token: int, listener: Listener) -> Written:
    from . import rewrite

    request = prepared.request
    plan, output = _planned(prepared, kept, n_token)
    changes = (f"{request.keep} of {prepared.n_expert} experts a layer are kept, by {request.by}",)
    writing = rewrite.Request(prepared.file.path, request.output, verify=request.verify, force=request.force)
    return rewrite.run(rewrite.Prepared(writing, plan, output, changes), listener)


def _compared(prepared: Prepared, listener: Listener) -> Comparison:
    from . import compare

    request = prepared.request
    asked = compare.Request(
        prepared.file.path,
        (request.output,),
        request.compared,
        n_ctx=request.n_ctx,
        n_chunk=request.n_chunk,
        load=request.load,
    )
    return compare.run(compare.prepare(asked), listener)


def pruned(plan: "Plan", kept: "Mapping[int, Sequence[int]]", n_expert: int, by: str, n_token: int) -> "Plan":
    """Return the plan of a GGUF file with the experts of each layer that are kept, and nothing else changed."""
    from gguf.constants import GGUFValueType, Keys

    from ..formats.gguf_fields import Field

    keep = len(next(iter(kept.values())))
    arch = plan.architecture
    fields: dict[str, Field] = {
        Keys.LLM.EXPERT_COUNT.format(arch=arch): Field(keep, GGUFValueType.UINT32),
        BY: Field(by, GGUFValueType.STRING),
        TOKENS: Field(n_token, GGUFValueType.UINT64),
        KEPT: Field([int(one) for row in kept.values() for one in row], GGUFValueType.ARRAY, GGUFValueType.UINT32),
    }
    label = plan.fields.get(Keys.General.SIZE_LABEL)
    if label and (sized := SIZE_LABEL.fullmatch(str(label.value))):
        fields[Keys.General.SIZE_LABEL] = Field(f"{keep}x{sized['rest']}", GGUFValueType.STRING)
    tensors = []
    for tensor in plan.tensors:
        name = OF_EXPERTS.fullmatch(tensor.name)
        tensors.append(_kept_of(tensor, plan, kept[int(name["layer"])], n_expert) if name else tensor)
    return replace(plan.with_fields(fields), tensors=tuple(tensors))


def _kept_of(tensor: "PlannedTensor", plan: "Plan", kept: "Sequence[int]", n_expert: int) -> "PlannedTensor":
    """Return a tensor with some of its experts, which lie along its slowest axis."""
    import numpy as np

    from ..writer.plan import Piece, read_planned

    shape = (*tensor.shape[:-1], len(kept))
    if len(tensor.shape) == 1:
        values = np.ascontiguousarray(read_planned(plan.source, tensor, 0, 1)[0, list(kept)])
        return replace(tensor, shape=shape, pieces=(), values=values)
    n_rows = tensor.n_rows // n_expert
    if len(tensor.pieces) == n_expert:  # one tensor an expert, as before April 2024
        pieces = tuple(tensor.pieces[expert] for expert in kept)
    else:
        name = tensor.pieces[0].name
        pieces = tuple(Piece(name, int(expert) * n_rows, int(expert + 1) * n_rows) for expert in kept)
    return replace(tensor, shape=shape, pieces=pieces, n_expert=len(kept) if tensor.n_expert else 0)
