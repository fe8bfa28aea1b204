"""The metadata of a converted model: what llama.cpp, LM Studio and the hub's viewer read.

In: a checkpoint, its hyper-parameters and the planned tensors. Out: GGUF fields in llama.cpp's order.
"""

import logging
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, Metadata, size_label
from gguf.constants import GGML_QUANT_VERSION, GGUFType, GGUFValueType
from gguf.gguf_writer import GGUFValue

from ..formats.checkpoint import Checkpoint, Parent
from ..formats.errors import CheckpointError
from ..formats.gguf_fields import Field, field_of, pack_fields
from ..models.family import Family
from ..models.graphs import Row
from ..models.model_config import ModelConfig
from ..writer.plan import PlannedTensor
from .graphs import asks_otherwise, wants_renormalizing
from .rope import rope_fields

HUB = "https://huggingface.co/"


def describe(
    checkpoint: Checkpoint, config: ModelConfig, family: Family, tensors: Sequence[PlannedTensor]
) -> dict[str, Field]:
    """Return all fields but those of the tokenizer and general.file_type."""
    writer = GGUFWriter(None, family.name)
    writer.add_type(GGUFType.MODEL)
    general = general_metadata(checkpoint, tensors)
    try:
        general.set_gguf_meta_model(writer)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{checkpoint.card_folder}: broken model card or generation config: {error}") from None
    _add_hyper_parameters(writer, config, family)
    _add_family(writer, config, family)
    return {key: _field(key, value, checkpoint) for key, value in writer.kv_data[0].items()}


def _field(key: str, value: GGUFValue, checkpoint: Checkpoint) -> Field:
    """Return a field that can be packed: model cards and generation configs may hold anything."""
    try:
        field = field_of(value.value) if value.type is GGUFValueType.ARRAY else Field(value.value, value.type)
        pack_fields({key: field})
    except (struct.error, TypeError, ValueError, AttributeError, OverflowError):
        raise CheckpointError(
            f"{checkpoint.card_folder}: {key} would be {value.value!r:.80}, which GGUF cannot hold; "
            "correct the model card or generation_config.json"
        ) from None
    return field


def general_metadata(checkpoint: Checkpoint, tensors: Sequence[PlannedTensor]) -> Metadata:
    """Return name, size label, license, parents and so on: from the model card, else from names.

    Raises CheckpointError when the model card or the generation config cannot be read.
    """
    shared, expert, n_expert = count_parameters(tensors)
    total = shared + expert * n_expert
    logging.getLogger("metadata").addHandler(logging.NullHandler())  # gguf's remarks on odd cards
    try:
        folder = checkpoint.card_folder.resolve() if checkpoint.card_folder else Path(checkpoint.name)
        metadata = Metadata.load(None, folder, None, total)
    except Exception as error:
        raise CheckpointError(f"{checkpoint.card_folder}: broken model card or generation config: {error}") from None
    metadata.name = metadata.name or checkpoint.name
    metadata.size_label = metadata.size_label or size_label(total, shared, expert, n_expert)
    metadata.license = metadata.license or checkpoint.license
    if not metadata.base_models and checkpoint.parents:
        metadata.base_models = [base_model(parent) for parent in checkpoint.parents]
    return metadata


def count_parameters(tensors: Sequence[PlannedTensor]) -> tuple[int, int, int]:
    """Return the weights outside of experts, those of one expert over all layers, and the number of experts."""
    shared = sum(tensor.n_weights for tensor in tensors if not tensor.n_expert)
    expert = sum(tensor.n_weights // tensor.n_expert for tensor in tensors if tensor.n_expert)
    return shared, expert, max((tensor.n_expert for tensor in tensors), default=0)


def base_model(parent: Parent) -> dict[str, str]:
    """Return a parent as gguf would name it from a model card; only a hub id has an organization and an address."""
    if not parent.repo:
        return {"name": parent.name}
    name, organization, _, _, version, _ = Metadata.get_model_id_components(parent.repo)
    entry = {
        "name": Metadata.id_to_title(name or parent.name),
        "organization": Metadata.id_to_title(organization) if organization else None,
        "version": version,
        "repo_url": HUB + parent.repo,
    }
    return {key: value for key, value in entry.items() if value is not None}


def _add_hyper_parameters(writer: GGUFWriter, config: ModelConfig, family: Family) -> None:
    """Add what every family has. Source: TextModel.set_gguf_parameters in llama.cpp's conversion/base.py."""
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_ctx)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.n_ff_exp if family.experts and family.graph.one_width else config.n_ff)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_head_kv)
    for key, value in rope_fields(config, family.name):
        _add(writer, key, value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.n_expert:
        writer.add_expert_count(config.n_expert)
        writer.add_expert_used_count(config.n_expert_used)
    if config.stated_head_dim:
        writer.add_key_length(config.stated_head_dim)
        writer.add_value_length(config.stated_head_dim)
    writer.add_file_type(0)


def _add_family(writer: GGUFWriter, config: ModelConfig, family: Family) -> None:
    """Add what only this graph has, and the version of the quantizations' layouts.

    expert_weights_norm is what the checkpoint asks for, where the graph, which does not read it, does otherwise.
    """
    for row in family.graph.rows:
        key = row.key.format(arch=family.name)
        if not isinstance(row, Row):
            _add(writer, key, row.value)
            continue
        value = getattr(config, row.field)
        if value is not None and (value or row.zero):
            _add(writer, key, float(value) if row.kind == "float32" else value)
    if asks_otherwise(config, family):
        writer.add_expert_weights_norm(wants_renormalizing(config))
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
