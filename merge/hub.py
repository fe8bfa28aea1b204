"""Models on the hub: a repository's name comes in, a folder with the files a merge or a conversion needs goes out.

huggingface_hub does the work, and with it HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, resuming and progress.
"""

from pathlib import Path

from ..formats.errors import CheckpointError

NEEDED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
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

    What is there already is not fetched again, and a broken download goes on where it stopped. Raises CheckpointError:
    no such repository or revision, no access, no network.
    """
    from huggingface_hub import constants, snapshot_download
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
        folder = snapshot_download(
            repo, revision=revision, allow_patterns=list(NEEDED), ignore_patterns=list(NOT_NEEDED)
        )
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
    return Path(folder)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
