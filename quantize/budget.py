"""Types under a budget: how much each role and layer of a model suffers comes in, a type per tensor goes out.

The divergence of a file is taken to be the sum of what its tensors cost, and a tensor's cost to fall by a constant
factor for each bit per weight; both held on a four-expert mixture (sum of roles 0.265, all together 0.272).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats.errors import PlanError
from ..formats.gguf_file import tensor_bytes
from ..models.tensor_roles import Role, layer_of, role_of
from ..models.tensor_types import row_fits
from .choices import TypeChoice
from .fallback import fitting_type

_T = GGMLQuantizationType
REFERENCE = _T.Q4_K
LADDER = (_T.Q2_K, _T.Q3_K, _T.Q4_K, _T.Q5_K, _T.Q6_K, _T.Q4_0, _T.Q5_0, _T.Q8_0)


@dataclass(frozen=True)
class Sensitivity:
    """Mean KL divergence, in nats, when one role alone has about 4 bits (REFERENCE, or what fits the rows).

    `roles` by the names of Role; `layers` are factors by layer, 1 on average; `per_bit` is the factor by which the
    divergence falls for each bit per weight; `floor` is what a file of Q8_0 has.
    """

    model: str
    text: str
    roles: Mapping[str, float]
    layers: Mapping[int, float] = field(default_factory=dict)
    per_bit: float = 4.5
    floor: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return what the file holds."""
        return {"format": "moe-gguf sensitivity", "version": 1, **asdict(self)}


def read_sensitivity(path: Path) -> Sensitivity:
    """Read what `moe-gguf sensitivity` wrote. Raises PlanError for anything else."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if given.pop("format") != "moe-gguf sensitivity" or given.pop("version") != 1:
            raise ValueError
        roles = {Role[name].name: float(value) for name, value in given["roles"].items()}
        layers = {int(layer): float(value) for layer, value in given["layers"].items()}
        found = Sensitivity(**{**given, "roles": roles, "layers": layers})
        numbers = (*roles.values(), *layers.values(), found.floor)
        whole = roles and all(0 <= number < 1e6 for number in numbers) and 1 < float(found.per_bit) < 1e3
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
        found = Sensitivity("", "", {})
    if not whole:
        raise PlanError(f"{path}: no file of sensitivities; moe-gguf sensitivity makes one")
    return found


@dataclass(frozen=True)
class Option:
    """A type that a tensor can have: its bytes, and the divergence that it costs."""

    qtype: GGMLQuantizationType
    n_bytes: int
    cost: float


@dataclass(frozen=True)
class Allocation:
    """A type per tensor, the bytes of those tensors, and the divergence to expect of the file."""

    types: Mapping[str, GGMLQuantizationType]
    n_bytes: int
    predicted_kld: float


def allocate(choices: Sequence[TypeChoice], sensitivity: Sensitivity, n_bytes: int) -> Allocation:
    """Choose types for the tensors that may be quantized, which together take at most `n_bytes`.

    Each tensor takes its best type at a price per byte, the lowest price that the budget allows; what is left buys the
    best upgrades that still fit. Raises PlanError when even the smallest types are too large.
    """
    options = options_of(choices, sensitivity)
    least = sum(min(option.n_bytes for option in row) for row in options.values())
    if least > n_bytes:
        raise PlanError(f"the smallest types of these tensors take {least:,} bytes, more than {max(n_bytes, 0):,}")
    low, high = 0.0, 1.0
    while _size(_at_price(options, high)) > n_bytes:
        high *= 8
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _size(_at_price(options, middle)) <= n_bytes else (middle, high)
    chosen = _spend(options, _at_price(options, high), n_bytes)
    cost = sensitivity.floor + sum(option.cost for option in chosen.values())
    return Allocation({name: option.qtype for name, option in chosen.items()}, _size(chosen), cost)


def options_of(choices: Sequence[TypeChoice], sensitivity: Sensitivity) -> dict[str, list[Option]]:
    """Return per tensor the types that fit its rows, smallest first."""
    sizes: dict[str, int] = {}
    for choice in choices:
        role = role_of(choice.name).name
        sizes[role] = sizes.get(role, 0) + _n_weights(choice)
    # A role that was not measured (OTHER) suffers as the average weight does.
    known = sum(sizes.get(role, 0) for role in sensitivity.roles)
    average = sum(sensitivity.roles.values()) / max(known, 1)
    options: dict[str, list[Option]] = {}
    for choice in choices:
        role, n_weights = role_of(choice.name).name, _n_weights(choice)
        measured = sensitivity.roles.get(role)
        whole = average * n_weights if measured is None else measured * n_weights / sizes[role]
        layer = layer_of(choice.name)
        whole *= sensitivity.layers.get(layer, 1.0) if layer is not None else 1.0
        reference = bits_of(fitting_type(choice.name, choice.shape[0], REFERENCE))
        row = [
            Option(
                qtype, tensor_bytes(choice.shape, qtype), whole * sensitivity.per_bit ** (reference - bits_of(qtype))
            )
            for qtype in LADDER
            if row_fits(choice.shape[0], qtype)
        ]
        options[choice.name] = sorted(row, key=lambda option: (option.n_bytes, LADDER.index(option.qtype)))
    return options


def _at_price(options: Mapping[str, list[Option]], price: float) -> dict[str, Option]:
    return {name: min(row, key=lambda option: option.cost + price * option.n_bytes) for name, row in options.items()}


def _spend(options: Mapping[str, list[Option]], chosen: dict[str, Option], n_bytes: int) -> dict[str, Option]:
    """Buy the upgrades that gain most per byte while they fit."""
    left = n_bytes - _size(chosen)
    while True:
        best, gain = None, 0.0
        for name, row in options.items():
            for option in row:
                more = option.n_bytes - chosen[name].n_bytes
                saved = chosen[name].cost - option.cost
                if 0 < more <= left and saved / more > gain:
                    best, gain = (name, option), saved / more
        if best is None:
            return chosen
        left -= best[1].n_bytes - chosen[best[0]].n_bytes
        chosen[best[0]] = best[1]


def _size(chosen: Mapping[str, Option]) -> int:
    return sum(option.n_bytes for option in chosen.values())


def _n_weights(choice: TypeChoice) -> int:
    n = 1
    for length in choice.shape:
        n *= length
    return n


def bits_of(qtype: GGMLQuantizationType) -> float:
    """Return the bits per weight of a type."""
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    return 8 * type_size / block_size
