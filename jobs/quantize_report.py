"""What quantize reports of its outputs: fallbacks, replaced encoders, errors, rounding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf.constants import GGMLQuantizationType

from ..quantize.choices import TypeChoice
from ..quantize.encode import Encoder
from ..quantize.rounding import can_round
from ..quantize.rounding.calibration import Calibration
from ..quantize.rounding.outcome import Outcome
from ..quantize.variants import Variant
from .budgeting import BudgetReport
from .outputs import OutputReport


@dataclass(frozen=True)
class Fallback:
    """Tensors whose rows cannot be cut into the blocks of the type that was wanted for them."""

    wanted: GGMLQuantizationType
    used: GGMLQuantizationType
    names: tuple[str, ...]


@dataclass(frozen=True)
class RoundingReport:
    """How weights were rounded: tensors with error feedback, those that kept plain rounding for the most part.

    `fallen_back` tells why by the tensor's name, `few_tokens` which experts saw fewer tokens than their inputs have
    columns, so that correlations count for less than half. `error` is the squared error of outputs on held-out inputs
    against that of plain rounding, the mean over tensors; None without such inputs.
    """

    kind: str
    n_tensors: int = 0
    fallen_back: Mapping[str, str] = field(default_factory=dict)
    few_tokens: Mapping[str, list[int]] = field(default_factory=dict)
    error: float | None = None

    @property
    def reasons(self) -> dict[str, list[str]]:
        """The tensors that kept plain rounding, by the reason."""
        found: dict[str, list[str]] = {}
        for name, why in self.fallen_back.items():
            found.setdefault(why, []).append(name)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON."""
        report: dict[str, Any] = {"kind": self.kind, "tensors": self.n_tensors, "fallen_back": list(self.fallen_back)}
        if self.kind == "calibrated":
            report |= {"reasons": dict(self.fallen_back), "few_tokens": dict(self.few_tokens)}
        return report if self.error is None else {**report, "error": round(self.error, 4)}


@dataclass(frozen=True)
class TextCheck:
    """Mean KL divergences on a text, in nats with standard errors: of an output, and of its types rounded plainly.

    The latter are None where there is nothing to compare with: the output is rounded plainly itself.
    """

    text: str
    kld: float
    error: float
    plain_kld: float | None = None
    plain_error: float | None = None

    @property
    def got_worse(self) -> bool:
        """Whether calibrated rounding does worse than plain rounding, by more than chance would explain."""
        if self.plain_kld is None or self.plain_error is None:
            return False
        return self.kld - self.plain_kld > 2 * (self.error**2 + self.plain_error**2) ** 0.5

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON."""
        return {
            "text": self.text,
            "kld": round(self.kld, 6),
            "kld_error": round(self.error, 6),
            "plain_kld": None if self.plain_kld is None else round(self.plain_kld, 6),
            "plain_kld_error": None if self.plain_error is None else round(self.plain_error, 6),
        }


@dataclass(frozen=True)
class VariantReport:
    """One output: what fell back, and after a run whose kernels were replaced and the errors that were measured."""

    output: OutputReport
    variant: Variant
    encoders_replaced: tuple[str, ...] | None = None
    errors: Mapping[str, float] | None = None
    rounding: RoundingReport | None = None
    budget: BudgetReport | None = None
    texts: tuple[TextCheck, ...] = ()

    @property
    def fallbacks(self) -> list[Fallback]:
        """The tensors that fell back, grouped by the types."""
        grouped: dict[tuple[GGMLQuantizationType, GGMLQuantizationType], list[str]] = {}
        for choice in self.variant.choices:
            if choice.fell_back:
                grouped.setdefault((choice.wanted, choice.qtype), []).append(choice.name)
        return [Fallback(wanted, used, tuple(names)) for (wanted, used), names in grouped.items()]

    def as_json(self) -> dict[str, Any]:
        """Return the stable JSON of one output."""
        report = self.output.as_json()
        report["fallbacks"] = [
            {"name": choice.name, "wanted": choice.wanted.name, "type": choice.qtype.name}
            for choice in self.variant.choices
            if choice.fell_back
        ]
        if self.encoders_replaced is not None:
            report["encoders_replaced"] = list(self.encoders_replaced)
        if self.budget is not None:
            report["budget"] = self.budget.as_json()
        if self.rounding is not None:
            report["rounding"] = self.rounding.as_json()
        if self.texts:
            report["texts"] = [text.as_json() for text in self.texts]
        if self.errors is not None:
            report["errors"] = dict(self.errors)
        return report


@dataclass(frozen=True)
class Report:
    """A report for each output, in the order of the mixes; `seconds` is None while nothing was written."""

    outputs: tuple[VariantReport, ...]
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return what `quantize --json` prints (docs/quantize.md)."""
        outputs = [output.as_json() for output in self.outputs]
        if self.seconds is None:
            return {"outputs": outputs, "dry_run": True}
        return {"outputs": outputs, "seconds": round(self.seconds, 3)}


def rounding_report(encoder: Encoder | None, variant: Variant, resumed: bool) -> RoundingReport | None:
    """Return what feedback did to the tensors of a variant; None before anything is written.

    Of a `resumed` run only the tensors are counted that were written in this one: of the others nothing is known.
    """
    if encoder is None:
        return None
    if encoder.calibration is None:
        return RoundingReport("plain")
    calibration = encoder.calibration
    known = {choice.name: encoder.outcomes.get((choice.name, choice.qtype)) for choice in variant.choices}
    outcomes = {name: outcome for name, outcome in known.items() if outcome is not None}
    ratios = [outcome.chosen / outcome.plain for outcome in outcomes.values() if outcome.plain > 0]
    fallen_back: dict[str, str] = {}
    few_tokens: dict[str, list[int]] = {}
    for choice in variant.choices:
        if choice.kept or not choice.converts:
            continue
        outcome = outcomes.get(choice.name)
        if outcome.fell_back if outcome else not resumed:
            fallen_back[choice.name] = _why(choice, calibration, outcome)
        entry = calibration.moments.entry(choice.source_name, choice.shape)
        tokens = calibration.moments.tokens(entry) if entry and outcome else []
        if few := [expert for expert, n in enumerate(tokens) if n < choice.shape[0]]:
            few_tokens[choice.name] = few
    error = sum(ratios) / len(ratios) if ratios else None
    return RoundingReport("calibrated", len(outcomes), fallen_back, few_tokens, error)


def _why(choice: TypeChoice, calibration: Calibration, outcome: Outcome | None) -> str:
    if outcome:
        return "nearer without feedback, on inputs that were left out"
    if calibration.moments.entry(choice.source_name, choice.shape) is None:
        return "no moments"
    if not can_round(choice.qtype):
        return f"no feedback in {choice.qtype.name}"
    return "no correlations in its moments"
