"""What a GGUF file is for, told by what is in it: a model, or one of the files that lie beside models."""

from enum import StrEnum

from gguf.constants import Keys

from ..formats.errors import GgufError
from ..formats.gguf_file import GgufFile


class GgufKind(StrEnum):
    """What a GGUF file is for; the value is what a person calls it."""

    MODEL = "a model"
    PROJECTOR = "a projector for images or sound (mmproj)"
    IMATRIX = "an importance matrix"
    ADAPTER = "a LoRA adapter"
    CONTROL = "a control vector"
    VOCABULARY = "a vocabulary without weights"
    DRAFT = "the draft part of a model, which guesses tokens for it"


DECLARED = {"mmproj": GgufKind.PROJECTOR, "imatrix": GgufKind.IMATRIX, "adapter": GgufKind.ADAPTER}
ARCHITECTURES = {"clip": GgufKind.PROJECTOR, "controlvector": GgufKind.CONTROL, "eagle3": GgufKind.DRAFT}
FOR = {
    GgufKind.PROJECTOR: "name the language model that it belongs to",
    GgufKind.IMATRIX: "give it to quantize with --imatrix",
    GgufKind.ADAPTER: "convert the adapter's folder into a mixture by a recipe, or merge it into its base first",
    GgufKind.CONTROL: "name the model that it steers",
    GgufKind.VOCABULARY: "name a file that has the weights as well",
    GgufKind.DRAFT: "name the model that it drafts for",
}


def kind_of_gguf(file: GgufFile) -> GgufKind:
    """Tell what a file is for, by general.type, the architecture, and its tensors."""
    metadata, names = file.metadata, file.tensors
    declared = metadata.get(Keys.General.TYPE)
    if declared in DECLARED:
        return DECLARED[declared]
    if metadata.get("imatrix.datasets") is not None or any(name.endswith(".in_sum2") for name in names):
        return GgufKind.IMATRIX
    if file.architecture in ARCHITECTURES:
        return ARCHITECTURES[file.architecture]
    if names and all(name.endswith((".lora_a", ".lora_b")) for name in names):
        return GgufKind.ADAPTER
    if not names and isinstance(metadata.get(Keys.Tokenizer.LIST), list):
        return GgufKind.VOCABULARY
    if names and all(name.startswith(("v.", "mm.", "a.")) for name in names):
        return GgufKind.PROJECTOR
    return GgufKind.MODEL


def demand_model(file: GgufFile) -> None:
    """Refuse to run what is no model. Raises GgufError, saying what it is and what to name instead."""
    kind = kind_of_gguf(file)
    if kind is not GgufKind.MODEL:
        raise GgufError(f"{file.path}: {kind}, not a model that can be run; {FOR[kind]}")
