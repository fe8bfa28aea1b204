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
from .fallback import fitting_type
from .sensitivity import FINEST, REFERENCE, Sensitivity

_T = GGMLQuantizationType
LADDER = (
    *(_T.Q2_K, _T.Q3_K, _T.IQ4_XS, _T.Q4_K, _T.Q5_K, _T.Q6_K),
    *(_T.Q4_0, _T.IQ4_NL, _T.Q4_1, _T.Q5_0, _T.Q5_1, _T.Q8_0),
)
# What small roles may have beyond the ladder: nothing is lost, and the inputs are not rounded either.
EXACT = _T.F16
# Where the errors of a type were not measured: the squared error falls by so much for each bit per weight.
PER_BIT = 4.2


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
    sizes: dict[str, int] = {}
    for choice in choices:
        role = role_of(choice.name).name
        sizes[role] = sizes.get(role, 0) + prod(choice.shape)
    # A role that was not measured (OTHER) suffers as the average weight does.
    known = sum(sizes.get(role, 0) for role in sensitivity.roles)
    average = sum(sensitivity.roles.values()) / max(known, 1)
    options: dict[str, list[Option]] = {}
    for choice in choices:
        role, n_weights = role_of(choice.name).name, prod(choice.shape)
        measured = sensitivity.roles.get(role)
        whole = average * n_weights if measured is None else measured * n_weights / sizes[role]
        layer = layer_of(choice.source_name)
        whole *= sensitivity.layers.get(layer, 1.0) if layer is not None else 1.0
        row = [
            Option(qtype, tensor_bytes(choice.shape, qtype), whole * factor)
            for qtype, factor in _factors(choice, sensitivity.errors.get(choice.source_name, {})).items()
        ]
        if (gained := sensitivity.exact.get(role, 0.0)) > 0:
            n_bytes = tensor_bytes(choice.shape, EXACT)
            row.append(Option(EXACT, n_bytes, -gained * n_weights / sizes[role]))
        options[choice.name] = sorted(row, key=lambda option: (option.n_bytes, option.cost))
    return options


def _factors(choice: TypeChoice, errors: Mapping[str, float]) -> dict[GGMLQuantizationType, float]:
    """Return what each type that fits costs, against what the reference type costs beyond the finest one."""
    reference = fitting_type(choice.name, choice.shape[0], REFERENCE)
    fitting = [qtype for qtype in LADDER if row_fits(choice.shape[0], qtype)]
    known = {qtype: errors[qtype.name] for qtype in fitting if qtype.name in errors}
    if not {reference, FINEST} <= known.keys():
        known = {qtype: PER_BIT ** -bits_of(qtype) for qtype in {*fitting, reference, FINEST}}
    whole = known[reference] - known[FINEST]
    if whole <= 0:  # every type is exact: the tensor is all zeros
        return dict.fromkeys(fitting, 0.0)
    return {qtype: max(known[qtype] - known[FINEST], 0.0) / whole for qtype in fitting if qtype in known}


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
