"""What a model's divergence comes from, as `moe-gguf sensitivity` measured it: the file, read and checked."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from ..formats.errors import PlanError
from ..models.tensor_roles import Role
from ..models.tensor_types import row_fits

_T = GGMLQuantizationType
FORMAT, VERSION = "moe-gguf sensitivity", 3
# What all tensors have while one role, or one group of layers, has less.
FINEST = _T.Q8_0
SYMMETRIC, ASYMMETRIC = KINDS = ("symmetric", "asymmetric")
_WITH_MINIMUMS = frozenset((_T.Q2_K, _T.Q4_K, _T.Q5_K, _T.Q4_1, _T.Q5_1))
# By kind the types that roles are measured with: the first that fits the rows.
_REFERENCES = {SYMMETRIC: (_T.Q5_0,), ASYMMETRIC: (_T.Q4_K, _T.Q4_1)}


def kind_of(qtype: GGMLQuantizationType) -> str:
    """Tell types with scales alone from those with minimums: what one kind's errors cost says little of the other's.

    Fine-tunes of a model that was quantized once lie near the levels of types with minimums: the errors are small, but
    what they take away is the fine-tune, everywhere at once. (Four such experts: Q5_1 had a third of Q5_0's squared
    error, and 1.3 times its divergence.)
    """
    return ASYMMETRIC if qtype in _WITH_MINIMUMS else SYMMETRIC


def reference_of(kind: str, row_length: int) -> GGMLQuantizationType:
    """Return the type of a kind with which tensors of such rows are measured."""
    return next((qtype for qtype in _REFERENCES[kind] if row_fits(row_length, qtype)), _REFERENCES[kind][-1])


@dataclass(frozen=True)
class Sensitivity:
    """Mean KL divergence, in nats, when one role alone has four or five bits (see reference_of).

    - roles: by the names of Role and by kind, beyond what a file of FINEST alone has, which is `floor`.
    - layers: factors by layer, 1 on average.
    - errors: by tensor and type, squared error of its outputs over squared outputs, rounded as the file will be.
    - exact: what is gained beyond FINEST, in nats, when a role has 16 bits; of small roles, where it may be worth it.
    - model, text: name of the model's file and digest of the text; rounding: "plain" or "calibrated".
    """

    model: str
    text: str
    roles: Mapping[str, Mapping[str, float]]
    layers: Mapping[int, float] = field(default_factory=dict)
    errors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    exact: Mapping[str, float] = field(default_factory=dict)
    floor: float = 0.0
    rounding: str = "plain"

    def as_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def read_sensitivity(path: Path) -> Sensitivity:
    """Read what `moe-gguf sensitivity` wrote. Raises PlanError for anything else."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if given.pop("format") != FORMAT or given.pop("version") != VERSION:
            raise ValueError
        roles = {Role[name].name: {kind: float(row[kind]) for kind in KINDS} for name, row in given["roles"].items()}
        layers = {int(layer): float(value) for layer, value in given["layers"].items()}
        exact = {Role[name].name: float(value) for name, value in given["exact"].items()}
        errors = {
            str(name): {GGMLQuantizationType[qtype].name: float(value) for qtype, value in row.items()}
            for name, row in given["errors"].items()
        }
        found = Sensitivity(**{**given, "roles": roles, "layers": layers, "errors": errors, "exact": exact})
        numbers = (
            *layers.values(),
            *exact.values(),
            *(v for table in (roles, errors) for row in table.values() for v in row.values()),
        )
        whole = bool(roles) and all(0 <= number < 1e6 for number in (*numbers, float(found.floor)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
        found = Sensitivity("", "", {})
    if not whole:
        raise PlanError(f"{path}: no file of sensitivities; moe-gguf sensitivity makes one")
    return found
