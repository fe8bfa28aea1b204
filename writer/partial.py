"""An output while it is made: shards under temporary names, a journal beside them, final names at the end."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ..formats.errors import OutputError
from ..formats.gguf_fields import Field
from ..formats.gguf_file import same_file
from ..formats.gguf_layout import (
    ShardLayout,
    TensorEntry,
    alignment_of,
    group_by_size,
    lay_out,
    shard_path,
    split_fields,
)
from ..formats.positional import PositionalFile
from .journal import (
    COMPLETE,
    Progress,
    add_to_journal,
    clear_journal,
    journal_path,
    read_journal,
    start_journal,
)


@dataclass(frozen=True)
class Output:
    """A GGUF file to write: its fields, its tensors (those of the plan, in order), and how it is split.

    `groups` are the shards' tensors; None means one file. `label` identifies what makes the bytes besides
    the plan (the type, the imatrix, overrides): a run that is continued must have the same.
    """

    path: Path
    fields: Mapping[str, Field]
    entries: tuple[TensorEntry, ...]
    label: str = ""
    groups: tuple[tuple[TensorEntry, ...], ...] | None = None

    def shards(self) -> list[tuple[Path, ShardLayout]]:
        """Return the final path and the layout of each file."""
        groups = self.groups or (self.entries,)
        if len(groups) == 1:
            return [(self.path, lay_out(self.fields, groups[0]))]
        count, total = len(groups), len(self.entries)
        return [
            (shard_path(self.path, i, count), lay_out(split_fields(self.fields, i, count, total), group))
            for i, group in enumerate(groups)
        ]

    @property
    def n_bytes(self) -> int:
        """Exact size of all its files."""
        return sum(layout.n_bytes for _, layout in self.shards())


def split_output(output: Output, largest: int) -> Output:
    """Return the output cut into shards of at most `largest` bytes of tensor data."""
    from dataclasses import replace

    groups = group_by_size(output.entries, largest, alignment_of(output.fields))
    return replace(output, groups=tuple(tuple(group) for group in groups))


Check = Callable[[Output, Sequence[Path]], None]


class PartialOutput:
    """The files of one output between the first byte and the final name."""

    def __init__(self, output: Output, identity: Mapping[str, str], force: bool) -> None:
        self.output = output
        self.shards = output.shards()
        digest = blake2b(b"".join(layout.header for _, layout in self.shards), digest_size=16).hexdigest()
        self._identity = {**identity, "the type or its options": f"{output.label} {digest}"}
        progress = self._progress(force)
        complete = progress is not None and progress.complete
        self._resumable = progress is not None and all(self._is_whole(*shard, complete) for shard in self.shards)
        self.done = progress.done if progress and self._resumable else 0
        self.finished = complete and self._resumable
        existing = [path for path, _ in self.shards if path.exists()]
        if existing and not force and not self.finished:
            raise OutputError(f"{existing[0]}: exists already; choose another name, or overwrite it with --force")
        self._places: dict[str, tuple[PositionalFile, int, int]] = {}
        self._files: list[PositionalFile] = []

    def _progress(self, force: bool) -> Progress | None:
        """Return how far an earlier run came; with `force` one that does not match counts for nothing."""
        try:
            return read_journal(self.output.path, self._identity)
        except OutputError:
            if force:
                return None
            raise

    @staticmethod
    def partial(path: Path) -> Path:
        """Return the temporary name of a file."""
        return path.with_name(path.name + ".partial")

    def _is_whole(self, path: Path, layout: ShardLayout, complete: bool) -> bool:
        """Tell whether a file has its full size; a complete one may have got its final name already."""
        partial = self.partial(path)
        there = path if complete and not partial.exists() else partial
        return there.exists() and there.stat().st_size == layout.n_bytes

    def missing_bytes(self) -> int:
        """Return how many bytes of disk it still needs."""
        if self.finished:
            return 0
        there = 0
        for path, layout in self.shards:
            # Those of another run count as well: they are written over.
            if self.partial(path).exists():
                state = self.partial(path).stat()
                # Windows does not count blocks: there a file takes its whole size from the beginning.
                blocks = getattr(state, "st_blocks", None)
                there += min(state.st_size if blocks is None else blocks * 512, layout.n_bytes)
        return sum(layout.n_bytes for _, layout in self.shards) - there

    def begin(self) -> None:
        """Create the files at full size with their headers and the journal, or open them to go on."""
        if self.finished:
            return
        if not self._resumable:
            clear_journal(self.output.path)
        for path, layout in self.shards:
            file = PositionalFile(self.partial(path), os.O_RDWR | os.O_CREAT | (0 if self._resumable else os.O_TRUNC))
            self._files.append(file)
            os.ftruncate(file.descriptor, layout.n_bytes)
            # Written again by a run that goes on: it may not have reached the disk before the power went.
            file.write(0, layout.header)
            for entry in self.output.entries:
                if entry.name in layout.offsets:
                    self._places[entry.name] = (file, layout.offsets[entry.name], row_bytes(entry))
        if not self._resumable:
            start_journal(self.output.path, self._identity)

    def put(self, name: str, row: int, data: memoryview) -> None:
        """Write encoded rows of a tensor, from `row` on."""
        file, offset, size = self._places[name]
        file.write(offset + row * size, data)

    def checkpoint(self, done: int) -> None:
        """Wait until what was written is on the disk, then note that the first `done` slabs need no repeating."""
        if self.finished or done <= self.done:
            return
        for file in self._files:
            file.sync()
        add_to_journal(self.output.path, {"done": done})
        self.done = done

    def seal(self, check: Check | None) -> None:
        """Sync and check the files, which still have their temporary names."""
        if self.finished:
            return
        for file in self._files:
            file.sync()
        self.close()
        if check:
            check(self.output, [self.partial(path) for path, _ in self.shards])
        add_to_journal(self.output.path, {COMPLETE: True})

    def publish(self) -> None:
        """Give the files their final names."""
        for path, _ in self.shards:
            if self.partial(path).exists():
                os.replace(self.partial(path), path)
        _sync_folder(self.output.path.parent)

    def forget(self) -> None:
        """Remove the journal of a published output."""
        journal_path(self.output.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def discard(self) -> None:
        """Remove the unfinished files and the journal."""
        self.close()
        for path, _ in self.shards:
            self.partial(path).unlink(missing_ok=True)
        self.forget()


def row_bytes(entry: TensorEntry) -> int:
    """Return the bytes of one encoded row."""
    return TensorEntry(entry.name, entry.shape[:1], entry.qtype).n_bytes


def check_outputs(outputs: Iterable[Output], inputs: Iterable[str]) -> None:
    """Refuse outputs that are an input, share a name, or have no folder to lie in."""
    seen: set[Path] = set()
    read = [Path(path) for path in inputs if os.path.isabs(path)]
    for output in outputs:
        for path, _ in output.shards():
            if any(same_file(path, source) for source in read):
                raise OutputError(f"{path}: the output is the input; choose another name")
            if path.resolve() in seen:
                raise OutputError(f"{path}: named twice as output")
            seen.add(path.resolve())
            if path.is_dir():
                raise OutputError(f"{path}: is a folder")
            if path.is_file() and not may_be_replaced(path):
                raise OutputError(f"{path}: exists and is no GGUF file; choose another name")
            if not path.parent.is_dir():
                raise OutputError(f"{path.parent}: no such folder; create it first")


def may_be_replaced(path: Path) -> bool:
    """Tell whether a file is called or is GGUF, or is empty: nothing else is overwritten, even with --force."""
    if path.suffix.lower() == ".gguf":
        return True
    with open(path, "rb") as file:
        return file.read(4) in (b"GGUF", b"")


def check_space(partials: Sequence[PartialOutput]) -> None:
    """Refuse to start when the exact sizes do not fit on the disk."""
    wanted: dict[int, tuple[Path, int]] = {}
    for partial in partials:
        folder = partial.output.path.parent
        device = folder.stat().st_dev
        wanted[device] = (folder, wanted.get(device, (folder, 0))[1] + partial.missing_bytes())
    for folder, need in wanted.values():
        free = shutil.disk_usage(folder).free
        if need > free:
            raise OutputError(
                f"{folder}: {need:,} bytes are needed and {free:,} are free; "
                f"free {need - free:,} bytes or write elsewhere with --outfile"
            )


def _sync_folder(folder: Path) -> None:
    if os.name != "nt":
        descriptor = os.open(folder, os.O_RDONLY)
        # Some network file systems refuse to sync a folder; the files themselves are safe.
        with suppress(OSError):
            os.fsync(descriptor)
        os.close(descriptor)
