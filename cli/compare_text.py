"""What `compare` prints: llama-perplexity's statistics, a column a variant, and where they come from."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .tables import table
from .terminal import format_bytes

if TYPE_CHECKING:
    from ..jobs.compare_report import Report, VariantReport
    from ..measure.answers import Answer, Divergent
    from ..measure.divergence import Divergence

LEVELS = ("99.9", "99.0", "95.0", "90.0", "75.0", "Median", "25.0", "10.0", "5.0", "1.0", "0.1")


def lines(report: "Report") -> Iterable[str]:
    """Yield the report, a block at a time."""
    variants = report.variants
    yield summary(report)
    names = [one.path.name for one in variants]
    columns = [statistics(one.divergence) for one in variants]
    rows = [(column[0][0], *(cells[1] for cells in column)) for column in zip(*columns, strict=True)]
    yield table(("", *names), rows, right=range(1, len(names) + 1))
    yield by_confidence(variants)
    if any(len(one.texts) > 1 for one in variants):
        yield by_text(variants)
    if any(one.routing for one in variants):
        yield by_layer(variants)
    for number, base in enumerate(report.base.answers):
        yield answers(report.base.path.name, base, [(one.path.name, one.answers[number]) for one in variants])


def summary(report: "Report") -> str:
    """Return a row per variant, and what the base is."""
    heads = (
        "file",
        "size",
        "bits/weight",
        "PPL",
        "KL divergence",
        "same top token",
        "same experts",
        "pp t/s",
        "tg t/s",
    )
    rows = []
    for one in report.variants:
        kld, top = one.divergence.kld, one.divergence.same_top
        written = "-" if one.generated_per_second is None else f"{one.generated_per_second:.1f}"
        rows.append(
            (
                one.path.name,
                format_bytes(one.n_bytes),
                f"{one.bits_per_weight:.2f}",
                f"{one.divergence.ppl_json()['q']:.4f}",
                f"{kld.value:.6f} ± {kld.error:.6f}",
                f"{100 * top.value:.3f} ± {100 * top.error:.3f} %",
                f"{100 * one.routing.value:.2f} %" if one.routing else "-",
                f"{one.prompt_per_second:.1f}",
                written,
            )
        )
    base, floor = report.base, report.base.noise_floor
    measured = f", noise floor {floor:.6f}" if floor is not None else ""
    return (
        f"{table(heads, rows, right=range(1, len(heads)))}\n\n"
        f"base: {base.path.name}, PPL {base.ppl:.4f}{measured}; {report.n_token} tokens of {report.n_chunk} chunks"
    )


def statistics(found: "Divergence") -> list[tuple[str, str]]:
    """Return what llama-perplexity --kl-divergence prints at its end: names and numbers, to the digit."""
    ppl, kld, delta = found.ppl_json(), found.kld_json(), found.delta_p_json()
    rows = [
        ("Mean PPL(Q)", f"{ppl['q']:.6f} ± {ppl['q_error']:.6f}"),
        ("Mean PPL(base)", f"{ppl['base']:.6f} ± {ppl['base_error']:.6f}"),
        ("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100 * ppl['correlation']:.2f}%"),
        ("Mean ln(PPL(Q)/PPL(base))", f"{ppl['ln_ratio']:.6f} ± {ppl['ln_ratio_error']:.6f}"),
        ("Mean PPL(Q)/PPL(base)", f"{ppl['ratio']:.6f} ± {ppl['ratio_error']:.6f}"),
        ("Mean PPL(Q)-PPL(base)", f"{ppl['difference']:.6f} ± {ppl['difference_error']:.6f}"),
        ("Mean KLD", f"{kld['mean']:.6f} ± {kld['mean_error']:.6f}"),
        ("Maximum KLD", f"{kld['max']:.6f}"),
        *((_named(level, "KLD"), f"{kld[_key(level)]:.6f}") for level in LEVELS if _key(level) in kld),
        ("Minimum KLD", f"{kld['min']:.6f}"),
        ("Mean Δp", f"{100 * delta['mean']:.3f} ± {100 * delta['mean_error']:.3f} %"),
        ("Maximum Δp", f"{100 * delta['max']:.3f}%"),
        *((_named(level, "Δp"), f"{100 * delta[_key(level)]:.3f}%") for level in LEVELS),
        ("Minimum Δp", f"{100 * delta['min']:.3f}%"),
        ("RMS Δp", f"{100 * delta['rms']:.3f} ± {100 * delta['rms_error']:.3f} %"),
        ("Same top p", f"{100 * found.same_top.value:.3f} ± {100 * found.same_top.error:.3f} %"),
    ]
    return rows


def _key(level: str) -> str:
    return "median" if level == "Median" else f"p{level.removesuffix('.0')}"


def _named(level: str, what: str) -> str:
    return f"Median {what}" if level == "Median" else f"{level}% {what}"


def by_confidence(variants: "Sequence[VariantReport]") -> str:
    """Return the mean divergence by how sure the base is of its likeliest token."""
    columns = [one.divergence.by_confidence() for one in variants]
    rows = [
        (
            f"{100 * each[0]['from']:.0f} to {100 * each[0]['to']:.0f} %",
            str(each[0]["n_tokens"]),
            *(f"{one['kld']:.6f}" for one in each),
        )
        for each in zip(*columns, strict=True)
    ]
    heads = ("KLD where the base is sure by", "tokens", *(one.path.name for one in variants))
    return table(heads, rows, right=range(1, len(heads)))


def by_text(variants: "Sequence[VariantReport]") -> str:
    """Return the mean divergence of each named text."""
    rows = [
        (name, *(f"{one.texts[name].kld.value:.6f} ± {one.texts[name].kld.error:.6f}" for one in variants))
        for name in variants[0].texts
    ]
    heads = ("KLD by text", *(one.path.name for one in variants))
    return table(heads, rows, right=range(1, len(heads)))


def by_layer(variants: "Sequence[VariantReport]") -> str:
    """Return the share of tokens that went to the base's experts, by layer that routes."""
    columns = [one.routing.layers if one.routing else [] for one in variants]
    rows = [
        (str(layer), *(f"{100 * column[layer]:.2f} %" if column else "-" for column in columns))
        for layer in range(max(map(len, columns)))
    ]
    heads = ("same experts by routing layer", *(one.path.name for one in variants))
    return table(heads, rows, right=range(1, len(heads)))


def answers(base_name: str, base: "Answer", others: "Sequence[tuple[str, Divergent]]") -> str:
    """Return a prompt and its answers below each other; where one leaves the base's stands a | and the gap."""
    found = [f"> {_line(base.prompt)}", f"  {base_name}: {_line(base.text)}"]
    for name, one in others:
        if one.at is None:
            found.append(f"  {name}: the same")
            continue
        rest = one.answer.text.removeprefix(one.same)
        gap = "" if one.gap is None else f", its token is {100 * one.gap:.1f} points likelier there than the base's"
        found.append(f"  {name}: {_line(one.same)}|{_line(rest)}")
        found.append(f"    parts at token {one.at}{gap}")
    return "\n".join(found)


def _line(text: str) -> str:
    return text.replace("\n", "\\n")
