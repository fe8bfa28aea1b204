"""A mix for a size: measured sensitivities and a number of bytes come in, a table of types with a name goes out."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.tensor_roles import role_of
from ..quantize.budget import Allocation, allocate
from ..quantize.file_types import FILE_TYPES, FileType
from ..quantize.mixes import Mix, by_table
from ..quantize.sensitivity import read_sensitivity
from ..quantize.stock_policy import stock
from ..quantize.variants import Knowledge, StoredType, Variant, plan_variants
from ..writer.plan import Plan

NEAREST = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
# The most bytes that lie between two tensors of a file.
PADDING = 32


@dataclass(frozen=True)
class Budget:
    """A size to keep to, bytes of the file or bits per weight, and the file of sensitivities that says how."""

    sensitivity: Path
    n_bytes: int | None = None
    bits_per_weight: float | None = None


@dataclass(frozen=True)
class BudgetReport:
    """The types that a budget bought, and the divergence to expect."""

    n_bytes: int
    allocation: Allocation

    @property
    def tensor_types(self) -> list[tuple[str, str]]:
        """What llama-quantize's --tensor-type-file takes to do the same: (pattern, type)."""
        return [
            (f"^{re.escape(name)}$".replace("\\_", "_"), qtype.name.lower())
            for name, qtype in self.allocation.types.items()
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
    budget: Budget, plan: Plan, stored: StoredType, plan_options: Any, known: Knowledge | None
) -> tuple[Mix, BudgetReport]:
    """Choose the types of a plan's tensors under a budget. Raises PlanError when nothing is small enough."""
    sensitivity = read_sensitivity(budget.sensitivity)
    whole = _planned(plan, stored, "Q8_0", plan_options, known)
    movable = [choice for choice in whole.choices if not choice.kept and not choice.reason.startswith("--")]
    others = _file_bytes(whole) - sum(choice.n_bytes for choice in movable)
    n_weights = sum(tensor.n_weights for tensor in plan.tensors)
    n_bytes = budget.n_bytes if budget.n_bytes is not None else int((budget.bits_per_weight or 0) * n_weights / 8)
    allocation = allocate(movable, sensitivity, n_bytes - others - PADDING * len(movable))
    file_type = _nearest(n_bytes, plan, stored, plan_options, known)
    mix = by_table(f"{file_type.name}_X", file_type, allocation.types)
    return mix, BudgetReport(n_bytes, allocation)


def _planned(plan: Plan, stored: StoredType, name: str, options: Any, known: Knowledge | None) -> Variant:
    return plan_variants(plan, stored, [stock(_file_type(name))], options, known)[1][0]


def _file_bytes(variant: Variant) -> int:
    return variant.output(Path("x.gguf"), "").n_bytes


def _nearest(n_bytes: int, plan: Plan, stored: StoredType, options: Any, known: Knowledge | None) -> FileType:
    """Return the stock type whose file is nearest in size."""
    sizes = {name: _file_bytes(_planned(plan, stored, name, options, known)) for name in NEAREST}
    return _file_type(min(sizes, key=lambda name: abs(sizes[name] - n_bytes)))


def _file_type(name: str) -> FileType:
    return next(file_type for file_type in FILE_TYPES if file_type.name == name)
