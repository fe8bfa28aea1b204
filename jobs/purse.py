"""What a size can be spent on: stock variants of a model and its sensitivities in, every mix worth its bytes out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.errors import PlanError
from ..quantize.budget import Allocation, Frontier, frontier
from ..quantize.choices import TypeChoice
from ..quantize.file_types import FileType, parse_file_type
from ..quantize.sensitivity import Sensitivity, read_sensitivity
from ..quantize.variants import Variant

NEAREST = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0")
# The most bytes that lie between two tensors of a file.
PADDING = 32


@dataclass(frozen=True)
class Purse:
    """What a budget can be spent on: all mixes worth having, the bytes of all else, and sizes of the stock types.

    `rounding` is that with which it was measured, "plain" or "calibrated".
    """

    curve: Frontier
    others: int
    n_weights: int
    nearest: Mapping[str, int]
    whole: Variant
    rounding: str = "plain"

    @property
    def sizes(self) -> tuple[int, int]:
        """The bytes of the smallest file and of the largest."""
        return self.others + self.curve.sizes[0], self.others + self.curve.largest

    def at(self, n_bytes: int) -> Allocation:
        """Return the best mix for a file of so many bytes. Raises PlanError when nothing is small enough."""
        return self.curve.at(n_bytes - self.others)

    def file_type(self, n_bytes: int) -> FileType:
        """Return the stock type whose file is nearest in size."""
        return parse_file_type(min(self.nearest, key=lambda name: abs(self.nearest[name] - n_bytes)))


def purse_of(path: Path | None, variants: Sequence[Variant], n_weights: int) -> Purse:
    """Return what can be bought, from the variants of NEAREST. Raises PlanError for sensitivities of another model."""
    if path is None:
        raise PlanError("a mix for a size needs --sensitivity FILE, or a text to measure on: -f TEXT")
    sensitivity = read_sensitivity(path)
    whole = variants[-1]
    _check_belongs(path, sensitivity, whole.choices)
    movable = [choice for choice in whole.choices if not choice.kept and not choice.reason.startswith("--")]
    others = _file_bytes(whole) - sum(choice.n_bytes for choice in movable) + PADDING * len(movable)
    nearest = {name: _file_bytes(variant) for name, variant in zip(NEAREST, variants, strict=True)}
    return Purse(frontier(movable, sensitivity), others, n_weights, nearest, whole, sensitivity.rounding)


def _check_belongs(path: Path, sensitivity: Sensitivity, choices: Sequence[TypeChoice]) -> None:
    names = {choice.source_name for choice in choices}
    if sensitivity.errors and not names & sensitivity.errors.keys():
        raise PlanError(f"{path}: measured on another model, {sensitivity.model}: none of its tensors is here")


def _file_bytes(variant: Variant) -> int:
    return variant.output(Path("x.gguf"), "").n_bytes
