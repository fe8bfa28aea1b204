"""Writing a recipe as the checkpoint that it stands for, after the doctor has seen it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.checkpoint import Checkpoint
from .listener import SILENT, Listener
from .opening import DEFAULT_GATES, GateRequest, Mixture, check_gates_of, open_mixture
from .planning import stoppable
from .sources import resolve_source

if TYPE_CHECKING:
    from ..merge.recipe import Recipe


@dataclass(frozen=True)
class Request:
    """A recipe (.yml or a name of `catalogue`), and the folder to write; None only examines it.

    `layout` is "classic" or "fused", `max_shard` bytes a shard.
    """

    recipe: str | Path | None
    output: Path | None
    catalogue: Path | None = None
    layout: str = "classic"
    max_shard: int = 5 * 10**9
    force: bool = False
    gates: GateRequest = DEFAULT_GATES


@dataclass(frozen=True)
class Prepared:
    """An examined mixture; its routers are zeros yet."""

    request: Request
    mixture: Mixture
    merged: Checkpoint

    @property
    def name(self) -> str:
        """The recipe's name."""
        return self.mixture.recipe.name

    @property
    def findings(self) -> tuple[str, ...]:
        """The doctor's warnings."""
        return tuple(finding.text for finding in self.mixture.findings)

    def as_json(self) -> dict[str, Any]:
        """Return what `merge --check --json` prints."""
        return {"recipe": self.name, "findings": list(self.findings)}


@dataclass(frozen=True)
class Report:
    """The checkpoint that was written, and the condition number of each layer's router."""

    output: Path
    n_bytes: int
    n_tensors: int
    layout: str
    condition_numbers: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what `merge --json` prints."""
        return {
            "output": str(self.output),
            "bytes": self.n_bytes,
            "condition_numbers": [round(number, 2) for number in self.condition_numbers],
            "tensors": self.n_tensors,
            "layout": self.layout,
        }


def prepare(request: Request, listener: Listener = SILENT) -> Prepared:
    """Open and examine the recipe. Raises RecipeError, CheckpointError, and OutputError for an output in the way."""
    from ..merge.write import check_target, total_bytes

    def refuse(merged: Checkpoint, recipe: "Recipe") -> None:
        if request.output is not None:
            check_target(request.output, merged, total_bytes(merged.source.tensors.values()), request.force)
            check_gates_of(recipe, request.gates.file)

    source = resolve_source(request.recipe, request.catalogue)
    with stoppable():
        opened = open_mixture(source, request.gates, request.layout, refuse, listener)
    assert opened.mixture is not None
    return Prepared(request, opened.mixture, opened.checkpoint)


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Compute the gates and write the checkpoint. Raises MoeGgufError; there is nothing to run without an output."""
    from ..merge.gates import condition_numbers
    from ..merge.open import with_gates
    from ..merge.write import total_bytes, write_merge
    from .gates import recipe_gates

    request, of = prepared.request, prepared.mixture
    assert request.output is not None, "a request without an output ends with prepare"
    with stoppable():
        routers = recipe_gates(of.recipe, of.models, of.gates.file, of.gates.base, listener)
        merged = with_gates(prepared.merged, routers)
        n_bytes = total_bytes(merged.source.tensors.values())
        with listener.bar(n_bytes, "merge") as bar:
            settings = {"max_shard": request.max_shard, "force": request.force}
            write_merge(of.recipe, merged, request.output, **settings, advance=bar.update)
    numbers = tuple(float(number) for number in condition_numbers(routers))
    return Report(request.output, n_bytes, len(merged.source.tensors), request.layout, numbers)
