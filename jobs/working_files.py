"""GGUF files that are made to be run and not to be kept: a recipe's base, a mixture that is calibrated."""

import os
import shutil
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

from ..formats.checkpoint import Checkpoint
from ..formats.errors import OutputError
from .listener import SILENT, Listener

CACHE_VARIABLE = "MOE_GGUF_CACHE"


def cached_gguf(checkpoint: Checkpoint, outtype: str, listener: Listener = SILENT) -> Path:
    """Return a GGUF of a checkpoint in moe-gguf's cache, made there if it is not yet; it counts as used now."""
    identity = sorted(checkpoint.source.identity().items())
    digest = blake2b(repr((identity, outtype)).encode(), digest_size=8).hexdigest()
    path = cache_folder() / f"{checkpoint.name}-{digest}-{outtype}.gguf"
    if path.is_file():
        listener.detail(f"{path} is used again")
        with suppress(OSError):
            os.utime(path)
    else:
        write_gguf(checkpoint, path, outtype, listener)
    return path


def temporary_folder() -> "TemporaryDirectory[str]":
    """Return a folder in the cache that goes away with its context; its name has this process's number."""
    return TemporaryDirectory(prefix=f"moe-gguf-{os.getpid()}-", dir=roomy_cache(0))


def write_gguf(checkpoint: Checkpoint, path: Path, outtype: str, listener: Listener = SILENT) -> None:
    """Write a plain GGUF of a checkpoint, to be run and not to be kept."""
    from ..convert.build_plan import build_plan
    from ..convert.outtype import choose_entries, file_type_field
    from ..quantize.encode import Encoder
    from ..runner.threads import best_thread_count
    from ..writer.partial import Output
    from ..writer.write import write

    plan = build_plan(checkpoint)
    plan = plan.with_fields(file_type_field(plan, outtype))
    output = Output(path, plan.fields, choose_entries(plan, outtype), f"gates {outtype}")
    path.parent.mkdir(parents=True, exist_ok=True)
    n_weights = sum(tensor.n_weights for tensor in plan.tensors)
    with listener.bar(n_weights, f"{checkpoint.name} for its states", " weights") as bar:
        write(plan, [output], Encoder(), n_threads=best_thread_count(), advance=bar.update)


def cache_folder() -> Path:
    """Return moe-gguf's cache: MOE_GGUF_CACHE, else where the system keeps caches."""
    from platformdirs import user_cache_path

    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen) if chosen else user_cache_path("moe-gguf", appauthor=False)


def roomy_cache(n_bytes: int) -> Path:
    """Return moe-gguf's cache folder, made if need be. Raises OutputError when its disk has no room for n_bytes."""
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if n_bytes > free:
        raise OutputError(
            f"{folder}: {n_bytes:,} bytes are needed temporarily, {free:,} are free; "
            f"name another folder in {CACHE_VARIABLE}"
        )
    return folder
