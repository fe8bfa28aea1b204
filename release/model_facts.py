"""What a model is, from the header of one of its files: names, parameters, parents, and a prompt by its template."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf.constants import Keys

from .chat_template import rendered, special_of, template_of
from .manifest import ModelFacts, Parameters, Published
from .ollama import default_system
from .request import Publisher

if TYPE_CHECKING:
    from ..models.catalogue import CatalogueModel
    from ..models.summary import Summary
    from ..runner.templates.source import Template

HUB = "https://huggingface.co/"
SYSTEM, QUESTION = "{system_prompt}", "{prompt}"


def model_facts(path: Path, name: str, entry: "CatalogueModel | None", publisher: Publisher) -> ModelFacts:
    """Return the facts of the model in a GGUF file; what the catalogue says of it wins. Raises GgufError."""
    from ..formats.gguf_file import read_gguf
    from ..models.summary import summarize_gguf

    file = read_gguf(path)
    summary, metadata = summarize_gguf(file), file.metadata
    parents = publisher.base_models or parents_of(metadata)
    relation = publisher.base_model_relation or ("merge" if len(parents) > 1 else "quantized")
    template = template_of(metadata, path)
    stem = stem_of(path, summary.file_type)
    return ModelFacts(
        name=stem,
        title=entry.title if entry else text(metadata, Keys.General.NAME) or name,
        architecture=file.architecture,
        parameters=parameters_of(summary),
        n_layer=summary.n_layer,
        n_ctx_train=summary.number(Keys.LLM.CONTEXT_LENGTH) or None,
        n_expert=summary.n_expert,
        n_expert_used=summary.n_expert_used,
        size_label=text(metadata, Keys.General.SIZE_LABEL),
        license=(entry.license if entry else None) or text(metadata, Keys.General.LICENSE),
        language=(entry.language if entry else ()) or words(metadata, Keys.General.LANGUAGES),
        tags=(entry.tags if entry else ()) or words(metadata, Keys.General.TAGS),
        datasets=(entry.datasets if entry else ()) or hub_ids(metadata, "general.dataset"),
        description=(entry.description if entry else None) or text(metadata, Keys.General.DESCRIPTION),
        base_models=parents,
        base_model_relation=relation if parents else None,
        quantized_by=publisher.quantized_by,
        repo=publisher.repo or f"{publisher.quantized_by or 'you'}/{stem}-GGUF",
        template=summary.template_kind,
        prompt=prompt_of(template, metadata) if template else None,
        system=default_system(template, metadata) if template else None,
        published=tuple(Published(one.task, one.n_shot, one.metric, one.value) for one in entry.results)
        if entry
        else (),
    )


def stem_of(path: Path, file_type: str | None) -> str:
    """Return a file's name without its type, its shard's number and its suffix."""
    import re

    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(".gguf"))
    return stem.removesuffix(f"-{file_type}") if file_type else stem


def parameters_of(summary: "Summary") -> Parameters:
    """Return the numbers of weights; those of as many dense models only for a mixture that is called by them."""
    label = summary.text(Keys.General.SIZE_LABEL) or ""
    called = bool(summary.n_expert) and label.lower().startswith(f"{summary.n_expert}x")
    shared = summary.n_params - summary.n_expert_params
    apart = summary.n_expert * summary.n_dense_params if called else None
    return Parameters(summary.n_params, summary.n_active_params, summary.n_expert_params, shared, apart)


def text(metadata: Mapping[str, Any], key: str) -> str | None:
    """Return a text of the metadata, if it is one."""
    value = metadata.get(key)
    return value if isinstance(value, str) and value.strip() else None


def words(metadata: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Return a list of texts of the metadata."""
    value = metadata.get(key)
    return tuple(map(str, value)) if isinstance(value, list) else ()


def parents_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the hub ids of the models that it was merged of, or made from."""
    return hub_ids(metadata, "general.base_model")


def hub_ids(metadata: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    """Return the hub ids under PREFIX.N.repo_url, each once."""
    count = metadata.get(f"{prefix}.count")
    urls = [text(metadata, f"{prefix}.{number}.repo_url") for number in range(count if isinstance(count, int) else 0)]
    return tuple(dict.fromkeys(url.removeprefix(HUB) for url in urls if url and url.startswith(HUB)))


def prompt_of(template: "Template", metadata: Mapping[str, Any]) -> str | None:
    """Return what the template makes of a system prompt and a question; without the former where it takes none."""
    question = {"role": "user", "content": QUESTION}
    special = special_of(metadata)
    found = rendered(template, [{"role": "system", "content": SYSTEM}, question], special)
    if found is None or SYSTEM not in found:
        found = rendered(template, [question], special)
    return found if found and QUESTION in found else None
