"""What the catalogue says of a model goes into its GGUF: title, size label, licence, languages, tags, datasets."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..models.catalogue import CatalogueModel
    from ..writer.plan import Plan


def state_catalogue(plan: "Plan", entry: "CatalogueModel") -> "Plan":
    """Return the plan with the catalogue's words in its metadata; what the catalogue leaves out stays as it is.

    A title replaces the names that were read from the source. It is taken apart as llama.cpp takes names apart
    (Metadata.get_model_id_components of the gguf package), so that files are called SmolBruce-4x135M-Q4_K_M.gguf.
    """
    from dataclasses import replace

    from gguf import GGUFWriter, Metadata
    from gguf.constants import GGUFValueType, Keys

    from ..convert.metadata import base_model
    from ..formats.checkpoint import Parent
    from ..formats.gguf_fields import Field, field_of

    _, _, basename, finetune, version, label = Metadata.get_model_id_components(entry.title)
    said = Metadata(
        name=entry.title,
        basename=basename,
        finetune=finetune,
        version=version,
        size_label=entry.size_label or label,
        description=entry.description,
        license=entry.license,
        tags=list(entry.tags) or None,
        languages=list(entry.language) or None,
        datasets=[base_model(Parent(repo, repo)) for repo in entry.datasets] or None,
    )
    writer = GGUFWriter(None, plan.architecture)
    said.set_gguf_meta_model(writer)
    stated = {
        key: field_of(value.value) if value.type is GGUFValueType.ARRAY else Field(value.value, value.type)
        for key, value in writer.kv_data[0].items()
        if key != Keys.General.ARCHITECTURE
    }
    names = (Keys.General.NAME, Keys.General.BASENAME, Keys.General.FINETUNE, Keys.General.VERSION)
    titled = entry.title != entry.name
    kept = {key: field for key, field in plan.fields.items() if not titled or key not in names}
    stated = {key: field for key, field in stated.items() if titled or key not in names}
    return replace(plan, fields={**kept, **stated})
