"""Types under a budget: what each role, layer and type of a model costs comes in, a type per tensor goes out.

The divergence of a file is taken to be the sum of what its tensors cost; it held on a four-expert mixture (sum of roles
0.265, all together 0.272). A tensor's types lie on a convex curve of bytes and costs, and the steps of all along
their curves, those that save most per byte first, are the whole frontier of a model: every size is a place on it.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ..formats.errors import PlanError
from ..formats.gguf_file import tensor_bytes
from ..models.tensor_roles import layer_of, role_of
from ..models.tensor_types import row_fits
from .choices import TypeChoice
from .sensitivity import FINEST, KINDS, SYMMETRIC, Sensitivity, kind_of, reference_of

_T = GGMLQuantizationType
LADDER = (
    *(_T.Q2_K, _T.Q3_K, _T.IQ4_XS, _T.Q4_K, _T.Q5_K, _T.Q6_K),
    *(_T.Q4_0, _T.IQ4_NL, _T.Q4_1, _T.Q5_0, _T.Q5_1, _T.Q8_0),
)
# What small roles may have beyond the ladder: nothing is lost, and the inputs are not rounded either.
EXACT = _T.F16
# Where the errors of a type were not measured: the squared error falls by so much for each bit per weight.
PER_BIT = 4.2
# What divides instead of no error at all: a tensor of zeros, or on the levels of a type.
TINY = 1e-30


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


@dataclass(frozen=True)
class Frontier:
    """All mixes that no other beats in both bytes and divergence: the smallest types, and steps up from there.

    `steps` are (tensor, option), those that save most divergence per byte first; `sizes` are the bytes before the first
    and after each of them.
    """

    options: Mapping[str, Sequence[Option]]
    steps: tuple[tuple[str, Option], ...]
    sizes: tuple[int, ...]
    floor: float

    @property
    def largest(self) -> int:
        """The bytes at which every tensor has its best type."""
        return self.sizes[-1]

    def types_at(self, n_steps: int) -> dict[str, Option]:
        """Return what every tensor has after the first `n_steps` steps."""
        return {name: _hull(row)[0] for name, row in self.options.items()} | dict(self.steps[:n_steps])

    def at(self, n_bytes: int) -> Allocation:
        """Return the mix of at most so many bytes: the steps that fit, and what is left spent on what gains most.

        Raises PlanError when even the smallest types are too large.
        """
        if n_bytes < self.sizes[0]:
            raise PlanError(
                f"the smallest types of these tensors take {self.sizes[0]:,} bytes, more than {max(n_bytes, 0):,}"
            )
        chosen = _spend(self.options, self.types_at(bisect_right(self.sizes, n_bytes) - 1), n_bytes)
        cost = self.floor + sum(option.cost for option in chosen.values())
        return Allocation({name: option.qtype for name, option in chosen.items()}, _size(chosen), cost)


def allocate(choices: Sequence[TypeChoice], sensitivity: Sensitivity, n_bytes: int) -> Allocation:
    """Choose types for the tensors that may be quantized, which together take at most `n_bytes`; see Frontier.at."""
    return frontier(choices, sensitivity).at(n_bytes)


def frontier(choices: Sequence[TypeChoice], sensitivity: Sensitivity) -> Frontier:
    """Return every mix of these tensors that is worth its bytes.

    It is what Lagrange multipliers give: at a price per byte each tensor takes the type that is cheapest with it, and
    falling prices take the steps of the tensors' curves in the order of what they save per byte.
    """
    options = options_of(choices, sensitivity)
    steps = []
    for name, row in options.items():
        curve = _hull(row)
        for before, after in pairwise(curve):
            gain = (before.cost - after.cost) / (after.n_bytes - before.n_bytes)
            steps.append((gain, name, after, after.n_bytes - before.n_bytes))
    steps.sort(key=lambda step: -step[0])
    least = sum(_hull(row)[0].n_bytes for row in options.values())
    sizes = accumulate((more for _, _, _, more in steps), initial=least)
    return Frontier(options, tuple((name, after) for _, name, after, _ in steps), tuple(sizes), sensitivity.floor)


def options_of(choices: Sequence[TypeChoice], sensitivity: Sensitivity) -> dict[str, list[Option]]:
    """Return per tensor the types that fit its rows, smallest first."""
    a_weight = _costs_of_a_weight(choices, sensitivity)
    options: dict[str, list[Option]] = {}
    for choice in choices:
        role, n_weights = role_of(choice.name).name, prod(choice.shape)
        layer = layer_of(choice.source_name)
        whole = n_weights * (sensitivity.layers.get(layer, 1.0) if layer is not None else 1.0)
        costs = _costs(choice, sensitivity.errors.get(choice.source_name, {}), a_weight[role])
        row = [Option(qtype, tensor_bytes(choice.shape, qtype), whole * cost) for qtype, cost in costs.items()]
        if (gained := sensitivity.exact.get(role, 0.0)) > 0:
            n_role = sum(prod(other.shape) for other in choices if role_of(other.name).name == role)
            row.append(Option(EXACT, tensor_bytes(choice.shape, EXACT), -gained * n_weights / n_role))
        options[choice.name] = sorted(row, key=lambda option: (option.n_bytes, option.cost))
    return options


def _costs_of_a_weight(choices: Sequence[TypeChoice], sensitivity: Sensitivity) -> dict[str, dict[str, float]]:
    """Return by role and kind what a weight of the reference type costs.

    A role that was not measured (OTHER) suffers as the average weight does, and none less than a hundredth of that:
    what seems so is chance.
    """
    sizes: dict[str, int] = {}
    for choice in choices:
        role = role_of(choice.name).name
        sizes[role] = sizes.get(role, 0) + prod(choice.shape)
    known = sum(size for role, size in sizes.items() if role in sensitivity.roles)
    average = {kind: sum(row[kind] for row in sensitivity.roles.values()) / max(known, 1) for kind in KINDS}
    return {
        role: {kind: max(sensitivity.roles[role][kind] / size, average[kind] / 100) for kind in KINDS}
        if role in sensitivity.roles
        else average
        for role, size in sizes.items()
    }


def _costs(
    choice: TypeChoice, errors: Mapping[str, float], references: Mapping[str, float]
) -> dict[GGMLQuantizationType, float]:
    """Return what a weight costs in each type that fits, from what it costs in the reference of each kind.

    Errors of types with minimums never cost less than as large ones of types without: those are random.
    """
    fitting = [qtype for qtype in LADDER if row_fits(choice.shape[0], qtype)]
    measured = {kind: reference_of(kind, choice.shape[0]) for kind in KINDS}
    known = {qtype: errors[qtype.name] for qtype in (*fitting, *measured.values()) if qtype.name in errors}
    if not known.keys() >= {*measured.values()}:
        known = {qtype: PER_BIT ** -bits_of(qtype) for qtype in (*fitting, *measured.values())}
    costs = dict.fromkeys((qtype for qtype in fitting if qtype in known), 0.0)
    for qtype in costs:
        if qtype is not FINEST:
            for kind in {kind_of(qtype), SYMMETRIC}:
                an_error = references[kind] / max(known[measured[kind]], TINY)
                costs[qtype] = max(costs[qtype], known[qtype] * an_error)
    return costs


def _hull(row: Sequence[Option]) -> list[Option]:
    """Return the options on the lower convex curve of bytes and cost, smallest first."""
    curve: list[Option] = []
    for option in row:
        if curve and option.cost >= curve[-1].cost:
            continue
        if curve and option.n_bytes == curve[-1].n_bytes:
            curve.pop()
        while len(curve) > 1 and _gain(curve[-2], curve[-1]) <= _gain(curve[-2], option):
            curve.pop()
        curve.append(option)
    return curve


def _gain(before: Option, after: Option) -> float:
    return (before.cost - after.cost) / (after.n_bytes - before.n_bytes)


def _spend(options: Mapping[str, Sequence[Option]], chosen: dict[str, Option], n_bytes: int) -> dict[str, Option]:
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


def bits_of(qtype: GGMLQuantizationType) -> float:
    """Return the bits per weight of a type."""
    block_size, type_size = GGML_QUANT_SIZES[qtype]
    return 8 * type_size / block_size
