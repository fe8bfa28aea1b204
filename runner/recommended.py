"""Sampling that a file recommends (general.sampling.*) comes in, sampling options that take it go out; flags win."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .sampling import SamplingOptions, sampler_name

# llama.cpp's keys (src/llama-arch.cpp) without "general.sampling.", and our names for them
FIELDS: dict[str, tuple[str, type]] = {
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "xtc_probability": ("xtc_probability", float),
    "xtc_threshold": ("xtc_threshold", float),
    "temp": ("temp", float),
    "penalty_last_n": ("repeat_last_n", int),
    "penalty_repeat": ("repeat_penalty", float),
    "mirostat": ("mirostat", int),
    "mirostat_tau": ("mirostat_tau", float),
    "mirostat_eta": ("mirostat_eta", float),
}
PREFIX = "general.sampling."


@dataclass(frozen=True)
class Recommended:
    """Sampling options with what the file recommends, and the sentence that says so."""

    sampling: SamplingOptions
    note: str | None = None


def with_recommended(sampling: SamplingOptions, metadata: Mapping[str, Any]) -> Recommended:
    """Take what a file recommends for the options that are not the user's own (`SamplingOptions.own`).

    As llama.cpp does (common/common.cpp, common_init_sampler_from_model); a value that is none is passed over.
    """
    if sampling.own is None:
        return Recommended(sampling)
    taken: dict[str, Any] = {}
    for key, (name, kind) in FIELDS.items():
        value = _number(metadata.get(PREFIX + key), kind)
        if value is not None and name not in sampling.own:
            taken[name] = value
    sequence = metadata.get(f"{PREFIX}sequence")
    if isinstance(sequence, str) and "samplers" not in sampling.own:
        names = tuple(filter(None, map(sampler_name, sequence.split(";"))))
        taken |= {"samplers": names} if names else {}
    changed = {name: value for name, value in taken.items() if value != getattr(sampling, name)}
    if not changed:
        return Recommended(sampling)
    told = ", ".join(
        f"{name} {';'.join(value) if name == 'samplers' else f'{value:g}'}" for name, value in changed.items()
    )
    return Recommended(replace(sampling, **changed), f"sampling as the file recommends: {told}")


def _shown(value: Any) -> str:
    return ";".join(value) if isinstance(value, tuple) else f"{value:g}"


def _number(value: Any, kind: type) -> Any:
    """Return a number that may be written as text; None for anything else, and for what no sampler takes."""
    try:
        number = kind(float(value)) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return number if number is not None and number == number and abs(number) != float("inf") else None
