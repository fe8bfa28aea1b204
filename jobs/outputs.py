"""What convert and quantize say of the files they plan and write: the same JSON, the same table.

The JSON is stable (docs/convert.md): {"outputs": [{"path", "type", "bytes", "bpw", "tensors": [...]}], ...}.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formats.errors import PlanError
from ..formats.gguf_fields import Field
from ..formats.gguf_layout import TensorEntry
from ..writer.partial import Output


@dataclass(frozen=True)
class Place:
    """Where outputs go: one `file`, or conventional names in a `folder`, which `create` says may be made."""

    file: Path | None
    folder: Path
    create: bool = False

    @classmethod
    def of(cls, outfile: str | None, n_outputs: int, default: Path) -> "Place":
        """Tell from --outfile: a .gguf file for one output; a folder that exists, or ends with a separator.

        Raises PlanError when a file is named for several outputs, or it is neither.
        """
        if outfile is None:
            return cls(None, default, create=True)
        if not outfile:
            raise PlanError("-o '' names neither a file nor a folder; leave it out for this folder, or write -o .")
        path = Path(outfile)
        if path.is_dir() or outfile.endswith(("/", os.sep)):
            return cls(None, path, create=True)
        if path.suffix.lower() == ".gguf":
            if n_outputs > 1:
                raise PlanError(f"{outfile}: {n_outputs} types go into a folder; name one with --outfile")
            return cls(path, path.parent)
        if n_outputs > 1 and not path.exists():
            return cls(None, path, create=True)
        raise PlanError(f"{outfile}: neither a .gguf file nor a folder; end a new folder's name with /")

    def path(self, fields: Mapping[str, Field], type_name: str) -> Path:
        """Return the output's path for a type."""
        from ..formats.naming import gguf_stem

        return self.file or self.folder / f"{gguf_stem(fields, type_name)}.gguf"

    def prepare(self) -> None:
        """Make the folder, if it may be made."""
        if self.create:
            self.folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class OutputReport:
    """One output: its files, its type, its tensors."""

    output: Output
    type: str

    @property
    def path(self) -> Path:
        """The file, or its first shard."""
        return self.output.shards()[0][0]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(layout.n_bytes for _, layout in self.output.shards())

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, headers not counted."""
        from ..writer.readback import count_weights

        entries = self.output.entries
        return 8 * sum(entry.n_bytes for entry in entries) / count_weights(entries)

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON of one output; sizes in bytes, shapes in GGUF order."""
        shards = self.output.shards()
        report: dict[str, Any] = {
            "path": str(self.path),
            "type": self.type,
            "bytes": self.n_bytes,
            "bpw": round(self.bits_per_weight, 4),
            "tensors": [describe_entry(entry) for entry in self.output.entries],
        }
        if len(shards) > 1:
            report["shards"] = [{"path": str(path), "bytes": layout.n_bytes} for path, layout in shards]
        return report


def describe_entry(entry: TensorEntry) -> dict[str, Any]:
    """Return the stable JSON of one tensor."""
    return {"name": entry.name, "shape": list(entry.shape), "type": entry.qtype.name, "bytes": entry.n_bytes}
