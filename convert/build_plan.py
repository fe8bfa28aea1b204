"""From a checkpoint to the plan of its GGUF: tensors, metadata, vocabulary, and what the user should know.

Reads headers and small JSON files only.
"""

from collections.abc import Iterator
from dataclasses import replace

from gguf.constants import GGUFValueType

from ..formats.checkpoint import Checkpoint
from ..formats.errors import TokenizerError
from ..formats.gguf_fields import Field, field_of
from ..formats.source import TensorSource
from ..models.config import find_family, read_config
from ..models.families.parts import EMBEDDING
from ..models.model_config import ModelConfig
from ..models.text_model import text_model
from ..writer.plan import Plan
from .graphs import choose_graph
from .metadata import describe
from .tensors import plan_tensors
from .vocabulary import compare_tokenizers, read_vocabulary


def build_plan(checkpoint: Checkpoint, *, pre_tokenizer: str | None = None) -> Plan:
    """Return the plan of a checkpoint.

    `pre_tokenizer` overrides what the tokenizer looks like. Raises CheckpointError or TokenizerError for what
    cannot be converted.
    """
    where = f"{checkpoint.name}: config.json"
    config, source = read_config(checkpoint.config, where), checkpoint.source
    ignored = dict(checkpoint.ignored)
    if find_family(checkpoint.config, where)[2]:
        source, others = text_model(source, checkpoint.name)
        ignored |= others
    config, size_warnings = _with_rows(config, source)
    family, graph_warnings = choose_graph(config, source.tensors, checkpoint.name)
    tensors, leftovers = plan_tensors(source.tensors, config, family, checkpoint.promised)
    vocabulary = read_vocabulary(checkpoint.folder, config.n_vocab, pre_tokenizer=pre_tokenizer)
    fields = describe(checkpoint, config, family, tensors)
    for key, value, kind in vocabulary.fields():
        fields[key] = field_of(value) if kind is GGUFValueType.ARRAY else Field(value, kind)
    return Plan(
        family.name,
        fields,
        tuple(tensors),
        source,
        ignored | leftovers,
        (*checkpoint.notes, *size_warnings, *graph_warnings, *vocabulary.warnings, *lost_in_the_merge(checkpoint)),
    )


def lost_in_the_merge(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield how the tokenizer differs from the base's, when a merge from elsewhere names a base that is here.

    Tools that save a tokenizer anew by its class lose its base's pre-tokenizer.
    """
    base = checkpoint.parents[0].folder if checkpoint.parents else None
    if base is None or not (checkpoint.folder / "tokenizer.json").is_file():
        return
    try:
        differences = compare_tokenizers(checkpoint.folder, base)
    except TokenizerError:
        return
    for difference in differences:
        yield f"the tokenizer differs from that of {base}: {difference}; copy its tokenizer files over the merge's"


def _with_rows(config: ModelConfig, source: TensorSource) -> tuple[ModelConfig, tuple[str, ...]]:
    """Trust the embedding's rows, not config.json, for the size of the vocabulary: merges leave it behind."""
    embedding = source.tensors.get(EMBEDDING.hf_names[0])
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[0] == config.n_vocab:
        return config, ()
    rows = embedding.shape[0]
    return replace(config, n_vocab=rows), (
        f"config.json says vocab_size {config.n_vocab}, the embedding has {rows} rows; the rows are taken",
    )
