"""The tensors of a plan: for each one of the output its shape, where its rows come from, and in which order.

In: the headers of a checkpoint, its hyper-parameters and its family. Out: planned tensors, checked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from gguf.constants import MODEL_TENSOR

from ..formats.errors import CheckpointError
from ..formats.source import TensorInfo
from ..formats.weight_files import NOT_NEEDED, missing_tensor
from ..models.families.parts import EMBEDDING, OUTPUT, OUTPUT_NORM, TIED_OUTPUT
from ..models.family import Experts, Family, Single, gguf_name, keys_behind, shape_of
from ..models.model_config import ModelConfig
from ..writer.plan import FLOAT_TYPES, Piece, PlannedTensor, RopePermutation
from .experts import count_experts, stack
from .rope import rope_factors

NOTHING: Mapping[str, str] = {}
SUPPORTED_DTYPES = (*FLOAT_TYPES, "F64")


@dataclass
class _Gatherer:
    """Plans tensors and remembers which of the source were used."""

    tensors: Mapping[str, TensorInfo]
    config: ModelConfig
    family: Family
    promised: Mapping[str, str]
    used: set[str] = field(default_factory=set)

    def single(self, rule: Single, layer: int = 0) -> Iterator[PlannedTensor]:
        """Plan one tensor; nothing when it is optional and absent."""
        names = [name.format(layer=layer) for name in rule.hf_names]
        name = next((name for name in names if name in self.tensors), None)
        if name is None:
            if rule.optional:
                return
            raise CheckpointError(missing_tensor(names[0], self.tensors, self.promised))
        info = self.tensors[name]
        part, n_parts = rule.part
        expected = shape_of(rule.shape, self.config)
        n_rows = expected[0] if n_parts > 1 else info.n_rows
        self._check_shape(info, (expected[0] * n_parts, *expected[1:]), rule)
        self._use(name)
        heads = {"q": self.config.n_head, "k": self.config.n_head_kv}.get(rule.heads)
        yield PlannedTensor(
            gguf_name(rule.tensor, rule.suffix, layer),
            tuple(reversed(expected)),
            info.dtype,
            (Piece(name, part * n_rows, (part + 1) * n_rows),),
            RopePermutation(heads) if heads and self.family.graph.interleaved else None,
        )

    def stacked(self, matrix: Experts, layer: int) -> PlannedTensor:
        """Plan one matrix of all experts of a layer."""
        config = self.config
        shape = shape_of(matrix.shape, config)
        pieces = stack(
            self.tensors, matrix, layer, config.n_expert, (shape[0], shape[1]), keys_behind(self.family, matrix.shape)
        )
        for piece in pieces:
            self._use(piece.name)
        dtypes = {self.tensors[piece.name].dtype for piece in pieces}
        return PlannedTensor(
            gguf_name(matrix.tensor, layer=layer),
            (shape[1], shape[0], config.n_expert),
            dtypes.pop() if len(dtypes) == 1 else "mixed",
            pieces,
            n_expert=config.n_expert,
        )

    def _use(self, name: str) -> None:
        info = self.tensors[name]
        if info.dtype not in SUPPORTED_DTYPES:
            raise CheckpointError(
                f"{name} ({info.where}) is stored as {info.dtype}; save the checkpoint as BF16, F16 or F32 first"
            )
        self.used.add(name)

    def _check_shape(self, info: TensorInfo, expected: tuple[int, ...], rule: Single) -> None:
        if info.shape != expected:
            raise CheckpointError(
                f"{info.name} ({info.where}) has the shape {list(info.shape)}; config.json asks for {list(expected)} "
                f"({keys_behind(self.family, rule.shape)})"
            )


def plan_tensors(
    tensors: Mapping[str, TensorInfo],
    config: ModelConfig,
    family: Family,
    promised: Mapping[str, str] = NOTHING,
) -> tuple[list[PlannedTensor], dict[str, str]]:
    """Return the tensors of the output in order, and those of the source that are left out with the reason.

    `promised` are tensors that only an index has, with the file that it names.
    Raises CheckpointError for a tensor that is missing, unknown, of another shape or of an unsupported dtype.
    """
    gatherer = _Gatherer(tensors, config, family, promised)
    planned: list[PlannedTensor] = []
    factors = rope_factors(config)
    if factors is not None:
        name = gguf_name(MODEL_TENSOR.ROPE_FREQS)
        planned.append(PlannedTensor(name, (len(factors),), "F32", (), values=np.asarray(factors, np.float32)))
    planned += gatherer.single(EMBEDDING)
    for layer in range(config.n_layer):
        planned += _plan_layer(gatherer, layer)
    planned += gatherer.single(OUTPUT_NORM)
    planned += gatherer.single(TIED_OUTPUT if family.graph.needs_output and config.tie_word_embeddings else OUTPUT)
    if not config.tie_word_embeddings and OUTPUT.hf_names[0] not in tensors:
        raise CheckpointError(
            f"tensor {OUTPUT.hf_names[0]} is missing, and config.json does not tie it to the embeddings "
            "(tie_word_embeddings); is the checkpoint whole?"
        )
    return planned, _leftovers(gatherer)


def _plan_layer(gatherer: _Gatherer, layer: int) -> Iterator[PlannedTensor]:
    family, config = gatherer.family, gatherer.config
    for rule in family.attention:
        yield from gatherer.single(rule, layer)
    if not family.experts or layer < config.n_layer_dense:
        for rule in family.dense:
            yield from gatherer.single(rule, layer)
        return
    _check_count(gatherer, layer)
    for rule in family.router:
        yield from gatherer.single(rule, layer)
    for matrix in family.experts:
        yield gatherer.stacked(matrix, layer)
    for rule in family.shared if config.n_ff_shexp else ():
        yield from gatherer.single(rule, layer)


def _check_count(gatherer: _Gatherer, layer: int) -> None:
    """Demand as many experts as config.json says: more matrices, or a router of another size, are a wrong config."""
    family, n_expert = gatherer.family, gatherer.config.n_expert
    found = count_experts(gatherer.tensors, family.experts, layer)
    routers = [gatherer.tensors.get(name.format(layer=layer)) for rule in family.router for name in rule.hf_names]
    rows = next((router.shape[0] for router in routers if router and router.shape), n_expert)
    if found > n_expert or found == rows != n_expert:
        raise CheckpointError(
            f"layer {layer} has {found} experts, config.json says num_local_experts {n_expert}; correct it"
        )


def _leftovers(gatherer: _Gatherer) -> dict[str, str]:
    ignored: dict[str, str] = {}
    for name, info in gatherer.tensors.items():
        if name in gatherer.used:
            continue
        reason = next((reason for ending, reason in NOT_NEEDED.items() if name.endswith(ending)), None)
        if reason is None:
            raise CheckpointError(
                f"{name} ({info.where}) has no place in {gatherer.family.hf_name} "
                f"with {gatherer.config.n_layer} layers; does config.json belong to these files?"
            )
        ignored[name] = reason
    return ignored
