"""Models on the hub: a repository's name comes in, a folder with the files a merge or a conversion needs goes out.

huggingface_hub does the work, and with it HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, resuming and progress.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..formats.errors import CheckpointError
from ..formats.weight_files import INDEX_FILE, SINGLE_FILE, TORCH_FILE, TORCH_INDEX, indexed_files

SMALL = (
    "config.json",
    "generation_config.json",
    "quantize_config.json",
    INDEX_FILE,
    TORCH_INDEX,
    "adapter_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "mergekit*config.yml",
    "README.md",
)
NOT_NEEDED = ("*/*",)


def fetch(repo: str, revision: str | None = None) -> Path:
    """Bring a repository's weights, configuration and tokenizer into the hub's cache; return their folder.

    Of the weights those are fetched that will be read: one file, or those that the index names. What is there already
    is not fetched again, and a broken download goes on where it stopped. Raises CheckpointError: no such repository or
    revision, no access, no network, or no weights of a model or adapter.
    """
    with _refusals(repo, revision):
        folder = _snapshot(repo, revision, SMALL)
        for wanted in _attempts(folder):
            if all((folder / name).is_file() for name in wanted):
                return folder
            _snapshot(repo, revision, wanted)
            if all((folder / name).is_file() for name in wanted):
                return folder
        _snapshot(repo, revision, ("model*.safetensors",))
        if not any(folder.glob("*.safetensors")):
            raise CheckpointError(f"{repo}: {_what_is_there(repo, revision)}")
    return folder


def _snapshot(repo: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    found = snapshot_download(repo, revision=revision, allow_patterns=list(patterns), ignore_patterns=list(NOT_NEEDED))
    return Path(found)


def _attempts(folder: Path) -> Iterator[tuple[str, ...]]:
    """Yield the files of weights to try, those that are read first before others."""
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        yield ("adapter_model.safetensors",)
        yield ("adapter_model.bin",)
        return
    for single, index in ((SINGLE_FILE, INDEX_FILE), (TORCH_FILE, TORCH_INDEX)):
        yield (single,)
        if (folder / index).is_file():
            yield tuple(indexed_files(folder / index))
    yield ("adapter_model.safetensors",)
    yield ("adapter_model.bin",)


def _what_is_there(repo: str, revision: str | None) -> str:
    """Say what a repository without weights has instead."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return "its weights are not in the cache, and HF_HUB_OFFLINE is set"
    names = HfApi().list_repo_files(repo, revision=revision)
    ggufs = [name for name in names if name.lower().endswith(".gguf")]
    if ggufs:
        return (
            f"a repository of GGUF files ({ggufs[0]}), which are converted already; name the repository of the model "
            "that they were made of"
        )
    others = [name for name in names if name.endswith((".pth", ".pt", ".h5", ".msgpack", ".npz", ".onnx", ".ckpt"))]
    if others:
        return f"no safetensors and no pytorch_model.bin, only {others[0]}; save the model with transformers first"
    return "no weights in this repository (no safetensors, no pytorch_model.bin)"


@contextmanager
def _refusals(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into one line each."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    endpoint = constants.ENDPOINT
    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(f"{repo}: gated; accept its terms at {endpoint}/{repo}, and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"{repo}: no folder here, and not on {endpoint} (or private: set HF_TOKEN)") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo}: no revision {revision!r} on {endpoint}") from error
    except LocalEntryNotFoundError as error:
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"no answer from {endpoint}"
        raise CheckpointError(f"{repo}: no folder here, not in the cache, and {offline}") from error
    except HFValidationError as error:
        raise CheckpointError(f"{repo}: not a name that the hub can have") from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{repo}: cannot be fetched from {endpoint}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
