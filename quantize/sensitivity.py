"""What a model's divergence comes from, as `moe-gguf sensitivity` measured it: the file, read and checked."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGMLQuantizationType

from ..formats.errors import PlanError
from ..models.tensor_roles import Role

# The types that roles and layers are given, one alone, and all other tensors meanwhile.
REFERENCE, FINEST = GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q8_0
FORMAT, VERSION = "moe-gguf sensitivity", 2


@dataclass(frozen=True)
class Sensitivity:
    """Mean KL divergence, in nats, when one role alone has about 4 bits (REFERENCE, or what fits the rows).

    - roles: by the names of Role, beyond what a file of FINEST alone has, which is `floor`.
    - layers: factors by layer, 1 on average.
    - errors: by tensor and type, squared error of its outputs over squared outputs, rounded as the file will be.
    - exact: what is gained beyond FINEST, in nats, when a role has 16 bits; of small roles, where it may be worth it.
    - model, text: name of the model's file and digest of the text; rounding: "plain" or "calibrated".
    """

    model: str
    text: str
    roles: Mapping[str, float]
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
        roles = {Role[name].name: float(value) for name, value in given["roles"].items()}
        layers = {int(layer): float(value) for layer, value in given["layers"].items()}
        exact = {Role[name].name: float(value) for name, value in given["exact"].items()}
        errors = {
            str(name): {GGMLQuantizationType[qtype].name: float(value) for qtype, value in row.items()}
            for name, row in given["errors"].items()
        }
        found = Sensitivity(**{**given, "roles": roles, "layers": layers, "errors": errors, "exact": exact})
        numbers = (
            *roles.values(),
            *layers.values(),
            *exact.values(),
            *(v for row in errors.values() for v in row.values()),
        )
        whole = bool(roles) and all(0 <= number < 1e6 for number in (*numbers, float(found.floor)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
        found = Sensitivity("", "", {})
    if not whole:
        raise PlanError(f"{path}: no file of sensitivities; moe-gguf sensitivity makes one")
    return found
