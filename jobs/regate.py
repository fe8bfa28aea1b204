"""Swapping the routers of a finished GGUF for others; nothing else in the file changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import OutputError
from .listener import SILENT, Listener
from .sources import resolve_gguf

if TYPE_CHECKING:
    from ..formats.gguf_file import GgufFile
    from ..merge.gates import Gates


@dataclass(frozen=True)
class Request:
    """A GGUF file or a name of `catalogue`, a file of gates, and the file to write."""

    model: str | Path | None
    gates: Path
    output: Path
    catalogue: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Prepared:
    """A model whose header was read, and the routers it will have."""

    request: Request
    file: "GgufFile"
    routers: "Gates"


@dataclass(frozen=True)
class Report:
    """The files that were written, and how many routers of how many experts were swapped."""

    outputs: tuple[Path, ...]
    n_routers: int
    n_expert: int

    def as_json(self) -> dict[str, Any]:
        """Return what `regate --json` prints."""
        return {"outputs": [str(path) for path in self.outputs], "routers": self.n_routers}


def prepare(request: Request) -> Prepared:
    """Read the header and the gates. Raises OutputError for an output in the way, GgufError and RecipeError."""
    from ..formats.gguf_file import read_gguf, same_file
    from ..merge.gates import load_gates
    from ..writer.journal import journal_path
    from ..writer.partial import may_be_replaced

    output = request.output
    if same_file(request.gates, output):
        raise OutputError(f"{output}: the output is the file of the routers; choose another name")
    if output.is_file() and not may_be_replaced(output):
        raise OutputError(f"{output}: exists and is no GGUF file; choose another name")
    if journal_path(output).exists():
        raise OutputError(
            f"{output}: an unfinished convert or quantize run writes here; finish it, or choose another name"
        )
    file = read_gguf(resolve_gguf(request.model, request.catalogue))
    return Prepared(request, file, load_gates(request.gates))


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Write the copy. Raises OutputError, and RecipeError for routers of another size."""
    from ..merge.regate import regate

    request, routers = prepared.request, prepared.routers
    with listener.bar(sum(shard.stat().st_size for shard in prepared.file.shards), "regate") as bar:
        written = regate(prepared.file, routers, request.output, request.force, bar.update)
    return Report(tuple(written), len(routers.routers), len(routers.routers[0]))
