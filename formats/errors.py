"""Every error a user can cause or meet, in one tree. The command line prints each as one clean line."""

import re

# A hub model's folder in huggingface_hub's cache, as .../models--OWNER--NAME/snapshots/COMMIT.
SNAPSHOT = re.compile(r"(?:[^\s'\"(]*[/\\])?models--([\w.-]+?)--([\w.-]+)[/\\]snapshots[/\\][0-9a-f]{7,40}")


class MoeGgufError(Exception):
    """What is wrong, where (file, tensor, expert, byte), and what to do about it, in one line."""

    def __str__(self) -> str:
        return by_repository(super().__str__())


def by_repository(text: str) -> str:
    """Return a message that names hub models by their repository, not by where the hub's cache keeps them."""
    return SNAPSHOT.sub(r"\1/\2", text)


class CheckpointError(MoeGgufError):
    """A Hugging Face checkpoint is broken, incomplete, inconsistent or of an unsupported kind."""


class TokenizerError(MoeGgufError):
    """A tokenizer cannot be read, or cannot be expressed in GGUF without changing its tokens."""


class GgufError(MoeGgufError):
    """A GGUF file is broken, truncated or of an unsupported kind."""


class PlanError(MoeGgufError):
    """What was asked for cannot be planned: options that exclude each other, unknown types or patterns."""


class OutputError(MoeGgufError):
    """An output cannot be written: it exists, is the input, does not fit on the disk, or writing failed."""


class Interrupted(OutputError):
    """The user stopped a run; the message says what is kept of it."""


class ImatrixError(MoeGgufError):
    """An importance matrix is broken or does not belong to the model."""


class MomentsError(ImatrixError):
    """A file of moments is broken, unfinished or does not belong to the model."""


class CatalogueError(MoeGgufError):
    """models.toml is broken, or names no such model."""


class RecipeError(MoeGgufError):
    """A merge recipe is broken or its sources do not fit together."""


class ReleaseError(MoeGgufError):
    """A release folder is broken or incomplete, or does not hold what its checksums and manifest say."""


class EngineError(MoeGgufError):
    """A model cannot be loaded, placed or run."""
