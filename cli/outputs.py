"""What convert and quantize say of the files they plan and write: the same JSON, the same table.

The JSON is stable (docs/convert.md): {"outputs": [{"path", "type", "bytes", "bpw", "tensors": [...]}], ...}.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..formats.errors import PlanError
from ..formats.gguf_fields import Field
from ..formats.gguf_layout import TensorEntry
from ..formats.words import count
from ..writer.partial import Output
from .terminal import format_bytes


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


def describe_output(output: Output, type_name: str) -> dict[str, Any]:
    """Return the stable JSON of one output; sizes in bytes, shapes in GGUF order."""
    from ..writer.readback import count_weights

    shards = output.shards()
    report: dict[str, Any] = {
        "path": str(shards[0][0]),
        "type": type_name,
        "bytes": sum(layout.n_bytes for _, layout in shards),
        "bpw": round(8 * sum(entry.n_bytes for entry in output.entries) / count_weights(output.entries), 4),
        "tensors": [describe_entry(entry) for entry in output.entries],
    }
    if len(shards) > 1:
        report["shards"] = [{"path": str(path), "bytes": layout.n_bytes} for path, layout in shards]
    return report


def describe_entry(entry: TensorEntry) -> dict[str, Any]:
    """Return the stable JSON of one tensor."""
    return {"name": entry.name, "shape": list(entry.shape), "type": entry.qtype.name, "bytes": entry.n_bytes}


def types_line(entries: Sequence[TensorEntry]) -> str:
    """Return how many tensors have which type: "113 F32, 4 Q8_0"."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.qtype.name] = counts.get(entry.qtype.name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def print_output(report: dict[str, Any], entries: Sequence[TensorEntry], seconds: float | None = None) -> None:
    """Print one output on stdout: where it is, how large, and what it is made of."""
    took = f", {seconds:.1f} s" if seconds is not None else ""
    click.echo(f"{report['path']}: {format_bytes(report['bytes'])}, {report['bpw']:.2f} bits per weight{took}")
    click.echo(f"  {count(len(entries), 'tensor')}: {types_line(entries)}")


def print_tensors(entries: Sequence[TensorEntry]) -> None:
    """Print the plan of every tensor."""
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        shape = " x ".join(str(n) for n in entry.shape)
        click.echo(f"  {entry.name:<{width}}  {shape:>24}  {entry.qtype.name:>6}  {entry.n_bytes:>15,}")
