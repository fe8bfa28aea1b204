"""Sampling options that change nothing, because another one switches their sampler off."""

from collections.abc import Iterator

from .sampling import SamplingOptions, is_plainly_greedy

# fields by the sampler that reads them
READERS: dict[str, tuple[str, ...]] = {
    "top_k": ("top_k",),
    "top_p": ("top_p",),
    "min_p": ("min_p",),
    "typ_p": ("typical_p",),
    "top_n_sigma": ("top_n_sigma",),
    "xtc": ("xtc_probability", "xtc_threshold"),
    "temperature": ("temp", "dynatemp_range", "dynatemp_exponent"),
    "penalties": ("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"),
    "dry": ("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers"),
}
CHOOSING = ("top_k", "top_p", "min_p", "typ_p", "top_n_sigma", "xtc")
FLAGS = {
    "typical_p": "typical",
    "top_n_sigma": "top-nsigma",
    "dynatemp_exponent": "dynatemp-exp",
    "mirostat_tau": "mirostat-ent",
    "mirostat_eta": "mirostat-lr",
    "dry_sequence_breakers": "dry-sequence-breaker",
}


def ineffective(options: SamplingOptions) -> list[str]:
    """Return a sentence for each reason why options that were chosen (`own`) change nothing."""
    chosen = options.own or frozenset()
    reasons: dict[str, list[str]] = {}
    for field, reason in void_fields(options):
        if field in chosen and not any(field in fields for fields in reasons.values()):
            reasons.setdefault(reason, []).append(field)
    return [
        f"{', '.join(map(flag, fields))} {'changes' if len(fields) == 1 else 'change'} nothing: {reason}"
        for reason, fields in reasons.items()
    ]


def flag(field: str) -> str:
    """Return the flag of a field of SamplingOptions."""
    return f"--{FLAGS.get(field, field.replace('_', '-'))}"


def void_fields(options: SamplingOptions) -> Iterator[tuple[str, str]]:
    """Yield fields that no sampler of the chain reads, each with the first reason, as `chain_links` builds it."""
    off = "--mirostat is on" if options.mirostat else ""
    greedy = not off and is_plainly_greedy(options)
    for sampler, fields in READERS.items():
        reason = off if off and sampler != "temperature" else ""
        if off and sampler == "temperature":
            yield from (("dynatemp_range", off), ("dynatemp_exponent", off))
        elif greedy and sampler in CHOOSING:
            reason = "--temp 0 always takes the likeliest token"
        elif not off and not greedy and sampler not in options.samplers:
            reason = f"--samplers leaves {sampler} out"
        yield from ((field, reason) for field in fields if reason)
    if greedy:
        yield "seed", "--temp 0 always takes the likeliest token"
        yield "dynatemp_exponent", "--temp 0 always takes the likeliest token"
    yield from unused_settings(options)


def unused_settings(options: SamplingOptions) -> Iterator[tuple[str, str]]:
    """Yield the settings of samplers that are off."""
    if not options.mirostat:
        yield from ((field, "--mirostat is off") for field in ("mirostat_tau", "mirostat_eta"))
    if options.xtc_probability <= 0:
        yield "xtc_threshold", "--xtc-probability is 0"
    if options.dynatemp_range <= 0:
        yield "dynatemp_exponent", "--dynatemp-range is 0"
    if options.dry_multiplier == 0:
        yield from ((field, "--dry-multiplier is 0") for field in READERS["dry"][1:])
    if options.repeat_penalty == 1 and not options.presence_penalty and not options.frequency_penalty:
        yield "repeat_last_n", "no penalty is on"
