"""A merged checkpoint written to a folder: an opened recipe comes in; shards, index, config and tokenizer go out.

    DIR/model-00001-of-00002.safetensors ...   or model.safetensors when one shard is enough
    DIR/model.safetensors.index.json, config.json, mergekit_moe_config.yml, README.md, and the base's tokenizer files

Rows go from the models to the shards in slabs. Everything happens in DIR.partial; DIR appears when it is complete.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..formats.checkpoint import ADDITIONAL_TEMPLATES, TOKENIZER_FILES, Checkpoint
from ..formats.errors import CheckpointError, Interrupted, OutputError
from ..formats.floats import first_nonfinite
from ..formats.safetensors import pack_header, stored_bytes
from ..formats.source import TensorInfo
from ..formats.weight_files import INDEX_FILE, SINGLE_FILE
from .card import merge_card
from .recipe import Recipe

RECIPE_FILE = "mergekit_moe_config.yml"
COPIED_FILES = (*TOKENIZER_FILES, "generation_config.json")
UNFINISHED = ".unfinished-merge"
MAX_SHARD = 5_000_000_000
SLAB_BYTES = 32 * 2**20

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Shard:
    """One file of the checkpoint and the tensors in it."""

    name: str
    tensors: tuple[TensorInfo, ...]


def write_merge(
    recipe: Recipe,
    merged: Checkpoint,
    folder: Path,
    *,
    max_shard: int = MAX_SHARD,
    force: bool = False,
    advance: Advance = lambda n_bytes: None,
) -> None:
    """Write the merged checkpoint to `folder`; `advance` is told the bytes that are done.

    Raises OutputError when the folder exists (unless `force`, which replaces a checkpoint), holds one of the merge's
    own models, or does not fit on the disk; CheckpointError for NaN and infinity.
    """
    folder = Path(os.path.realpath(folder))
    tensors = list(merged.source.tensors.values())
    check_target(folder, merged, total_bytes(tensors), force)
    partial, replaced = _beside(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / UNFINISHED).touch()
    try:
        shards = cut_shards(tensors, max_shard)
        for shard in shards:
            _write_shard(partial / shard.name, shard, merged, advance)
        _write_json(partial / "config.json", merged.config)
        if len(shards) > 1:
            _write_json(partial / INDEX_FILE, _index(shards))
        copy_tokenizer(merged.folder, partial)
        (partial / RECIPE_FILE).write_text(recipe.source, encoding="utf-8")
        (partial / "README.md").write_text(merge_card(recipe, merged), encoding="utf-8")
        (partial / UNFINISHED).unlink()
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
    except BaseException as error:
        if replaced.exists() and not folder.exists():
            replaced.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(
                f"{folder.name}: interrupted; the merge was not written, and nothing was replaced"
            ) from None
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def total_bytes(tensors: Iterable[TensorInfo]) -> int:
    """Return the bytes of all tensors' weights."""
    return sum(stored_bytes(info) for info in tensors)


def check_target(folder: Path, merged: Checkpoint, n_bytes: int, force: bool) -> None:
    """Refuse a folder that is there, that the merge reads from, or that has not the room. Raises OutputError."""
    target = Path(os.path.realpath(folder))
    if target.is_symlink():
        raise OutputError(f"{folder}: is a link that leads nowhere; remove it, or name another folder")
    if target == Path.cwd():
        raise OutputError(f"{folder}: is the current folder, which a merge cannot replace; name another one")
    for path in merged.source.identity():
        if os.path.isabs(path) and target in Path(path).parents:
            raise OutputError(f"{folder}: holds {Path(path).name}, which the merge reads; write elsewhere")
    if folder.exists():
        if not folder.is_dir():
            raise OutputError(f"{folder}: is a file; name a folder")
        if any(folder.iterdir()) and not force:
            raise OutputError(f"{folder}: exists already; choose another name, or overwrite it with --force")
        if any(folder.iterdir()) and not (folder / "config.json").is_file():
            raise OutputError(f"{folder}: is no checkpoint, so --force does not replace it; choose another name")
        if foreign := [path.name for path in folder.iterdir() if not _of_a_checkpoint(path)]:
            raise OutputError(
                f"{folder}: holds {foreign[0]}, which is no part of a checkpoint and would be lost; move it away first"
            )
    partial, replaced = _beside(target)
    if replaced.exists() or (partial.exists() and not (partial / UNFINISHED).is_file()):
        stray = replaced if replaced.exists() else partial
        raise OutputError(f"{stray}: is in the way and not of an unfinished merge; move it away first")
    nearest = next(parent for parent in (target, *target.parents) if parent.exists())
    if not nearest.is_dir():
        raise OutputError(f"{folder}: {nearest} is a file, so nothing can lie in it; name another folder")
    free = shutil.disk_usage(nearest).free
    if n_bytes > free:
        raise OutputError(f"{nearest}: {n_bytes:,} bytes are needed, {free:,} are free; write elsewhere")


def _beside(folder: Path) -> tuple[Path, Path]:
    """Return where a merge is made, and where what it replaces goes until it is there."""
    return folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".replaced")


def _of_a_checkpoint(path: Path) -> bool:
    """Tell whether a file or folder is one that checkpoints consist of."""
    known = (*COPIED_FILES, INDEX_FILE, RECIPE_FILE, "config.json", "README.md", ADDITIONAL_TEMPLATES)
    return path.name in known or (path.is_file() and path.suffix == ".safetensors")


def cut_shards(tensors: Sequence[TensorInfo], max_shard: int) -> list[Shard]:
    """Group tensors, in order, into shards of at most `max_shard` bytes (a larger tensor has one to itself)."""
    groups: list[list[TensorInfo]] = [[]]
    size = 0
    for info in tensors:
        if groups[-1] and size + stored_bytes(info) > max_shard:
            groups.append([])
            size = 0
        groups[-1].append(info)
        size += stored_bytes(info)
    if len(groups) == 1:
        return [Shard(SINGLE_FILE, tuple(groups[0]))]
    count = len(groups)
    return [Shard(f"model-{i + 1:05}-of-{count:05}.safetensors", tuple(group)) for i, group in enumerate(groups)]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the base's tokenizer files as they are: saving them through a library may change them."""
    for name in COPIED_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    templates = source / ADDITIONAL_TEMPLATES
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name)


def _write_shard(path: Path, shard: Shard, merged: Checkpoint, advance: Advance) -> None:
    with path.open("wb") as file:
        file.write(pack_header(shard.tensors))
        for info in shard.tensors:
            rows = max(1, SLAB_BYTES * info.n_rows // stored_bytes(info))
            for start in range(0, info.n_rows, rows):
                slab = merged.source.read_rows(info.name, start, min(start + rows, info.n_rows))
                _demand_finite(slab, info, start)
                file.write(np.ascontiguousarray(slab).data)
                advance(slab.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _demand_finite(slab: np.ndarray, info: TensorInfo, start: int) -> None:
    """Refuse NaN and infinity, which a broken model or too narrow a dtype brings into the merge."""
    if (bad := first_nonfinite(slab)) is not None:
        advice = (
            "mend that model" if info.dtype != "F16" else "mend that model, or use dtype bfloat16 if F16 is too narrow"
        )
        raise CheckpointError(
            f"NaN or infinity in {info.name} ({info.where}), row {start + bad[0]}, column {bad[1]}; {advice}"
        )


def _index(shards: Sequence[Shard]) -> dict[str, object]:
    total = sum(total_bytes(shard.tensors) for shard in shards)
    weight_map = {info.name: shard.name for shard in shards for info in shard.tensors}
    return {"metadata": {"total_size": total}, "weight_map": weight_map}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
