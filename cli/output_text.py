"""What convert and quantize say of the files they plan and write, as text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..formats.words import count
from .terminal import echo, format_bytes

if TYPE_CHECKING:
    from ..formats.gguf_layout import TensorEntry
    from ..jobs.outputs import OutputReport


def types_line(entries: "Sequence[TensorEntry]") -> str:
    """Return how many tensors have which type: "113 F32, 4 Q8_0"."""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry.qtype.name] = counts.get(entry.qtype.name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def print_output(report: "OutputReport", seconds: float | None = None) -> None:
    """Print one output on stdout: where it is, how large, and what it is made of."""
    took = f", {seconds:.1f} s" if seconds is not None else ""
    echo(f"{report.path}: {format_bytes(report.n_bytes)}, {report.bits_per_weight:.2f} bits per weight{took}")
    entries = report.output.entries
    echo(f"  {count(len(entries), 'tensor')}: {types_line(entries)}")


def print_tensors(entries: "Sequence[TensorEntry]") -> None:
    """Print the plan of every tensor."""
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        shape = " x ".join(str(n) for n in entry.shape)
        echo(f"  {entry.name:<{width}}  {shape:>24}  {entry.qtype.name:>6}  {entry.n_bytes:>15,}")
