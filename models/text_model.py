"""The text model within a multimodal checkpoint: its tensors by the names that they have in a model of their own.

In: a checkpoint's source. Out: the same rows under other names, and the tensors that belong to other parts.
"""

from ..formats.errors import CheckpointError
from ..formats.renamed import RenamedSource
from ..formats.source import TensorSource

EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"
OTHER_PART = "of another part than the text model"


def text_model(source: TensorSource, where: str) -> tuple[TensorSource, dict[str, str]]:
    """Return the text model's tensors, named as in a model of its own, and the others with why they are left out.

    It lies under one prefix: `language_model.model.`, `model.language_model.`, `model.text_model.` or another that
    ends with its embedding. Raises CheckpointError when there is none, or more than one.
    """
    prefixes = [name.removesuffix(EMBEDDING) for name in source.tensors if name.endswith("." + EMBEDDING)]
    if len(prefixes) != 1:
        found = f"there are {len(prefixes)}: {', '.join(prefixes)}" if prefixes else "there is none"
        raise CheckpointError(f"{where}: the text model's embedding was looked for (...{EMBEDDING}), and {found}")
    prefix = prefixes[0]
    names, others = {}, {}
    for name in source.tensors:
        if name.startswith(prefix):
            names["model." + name.removeprefix(prefix)] = name
        elif name == HEAD or name.endswith("language_model." + HEAD):
            names[HEAD] = name
        else:
            others[name] = OTHER_PART
    return RenamedSource(source, names), others
