"""A mix for a size: measured sensitivities and a number of bytes come in, a table of types with a name goes out."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.tensor_roles import role_of
from ..quantize.budget import Allocation
from ..quantize.choices import MixOptions
from ..quantize.file_types import parse_file_type
from ..quantize.mixes import Mix, by_table
from ..quantize.stock_policy import stock
from ..quantize.variants import Knowledge, StoredType, plan_variants
from ..writer.plan import Plan
from .fitting import largest_that_fits
from .purse import NEAREST, purse_of


@dataclass(frozen=True)
class Budget:
    """A size to keep to: bytes of the file, or bits per weight, or memory to run it in; and how tensors suffer.

    `vram` is bytes per device, `ram` bytes of the computer; the file then is the largest that runs there with a default
    context. `sensitivity` is a file of `moe-gguf sensitivity`, None while it is still to be measured.
    """

    sensitivity: Path | None
    n_bytes: int | None = None
    bits_per_weight: float | None = None
    vram: tuple[int, ...] = ()
    ram: int | None = None


@dataclass(frozen=True)
class BudgetReport:
    """The types that a budget bought, and the divergence to expect."""

    n_bytes: int
    allocation: Allocation
    rounding: str = "plain"

    @property
    def tensor_types(self) -> list[tuple[str, str]]:
        """What llama-quantize's --tensor-type-file takes to do the same: (pattern, type)."""
        return [
            (f"^{re.escape(name)}$".replace("\\_", "_"), qtype.name.lower())
            for name, qtype in self.allocation.types.items()
        ]

    def warnings(self, rounding: str) -> list[str]:
        """Return what the user should know of a file that is rounded so."""
        if self.rounding == rounding:
            return []
        return [
            f"the sensitivities were measured with {self.rounding} rounding, and this file's is {rounding}: "
            "another mix may be better; measure again"
        ]

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON (docs/quantize.md)."""
        mix = [{"pattern": pattern, "type": name} for pattern, name in self.tensor_types]
        return {"bytes": self.n_bytes, "predicted_kld": round(self.allocation.predicted_kld, 5), "mix": mix}

    def table(self) -> list[tuple[str, str]]:
        """Return per role the types that its tensors have, as in "28 q5_k, 2 q6_k"."""
        rows: dict[str, dict[str, int]] = {}
        for name, qtype in self.allocation.types.items():
            row = rows.setdefault(role_of(name).value, {})
            row[qtype.name] = row.get(qtype.name, 0) + 1
        return [(role, ", ".join(f"{n} {name}" for name, n in sorted(row.items()))) for role, row in rows.items()]


def budgeted_mix(
    budget: Budget, plan: Plan, stored: StoredType, options: MixOptions, known: Knowledge | None
) -> tuple[Mix, BudgetReport]:
    """Choose the types of a plan's tensors under a budget. Raises PlanError when nothing is small enough."""
    variants = plan_variants(plan, stored, [stock(parse_file_type(name)) for name in NEAREST], options, known)[1]
    purse = purse_of(budget.sensitivity, variants, sum(tensor.n_weights for tensor in plan.tensors))
    n_bytes = budget.n_bytes
    if budget.bits_per_weight is not None:
        n_bytes = int(budget.bits_per_weight * purse.n_weights / 8)
    elif n_bytes is None:
        n_bytes = largest_that_fits(purse, budget.vram, budget.ram)
    allocation = purse.at(n_bytes)
    file_type = purse.file_type(n_bytes)
    return by_table(f"{file_type.name}_X", file_type, allocation.types), BudgetReport(
        n_bytes, allocation, purse.rounding
    )
