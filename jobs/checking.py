"""Whether calibrated rounding helps on texts, those of the calibration and others: both roundings, side by side.

Outputs that were rounded by moments, and texts, come in. The same types are rounded plainly into a temporary file, and
both are held against the source.
"""

from dataclasses import replace
from pathlib import Path

from ..formats.gguf_file import read_gguf
from ..measure.divergence import Divergence
from ..quantize.mixes import by_table
from ..quantize.variants import Variant
from . import compare, quantize
from .groundwork import PLAIN, Groundwork, Wanted
from .listener import SILENT, Listener
from .quantize_report import TextCheck


def texts_of(wanted: Wanted) -> tuple[Path, ...]:
    """Return the texts to check on: that of the calibration first."""
    return tuple(dict.fromkeys(path for path in (wanted.calibration, *wanted.texts) if path))


def is_due(request: quantize.Request, wanted: Wanted) -> bool:
    """Tell whether to check: there is a second text, or one that nothing else was asked of."""
    return len(texts_of(wanted)) > 1 or bool(wanted.texts and request.budget is None)


def checked(report: quantize.Report, laid: Groundwork, wanted: Wanted, listener: Listener = SILENT) -> quantize.Report:
    """Return the report with what became of each text, and warn of those on which calibrated rounding does worse."""
    assert laid.source
    comparison = compare.Request(
        laid.source,
        (),
        tuple((str(path), path) for path in texts_of(wanted)),
        n_chunk=2 * wanted.n_chunk,
        spread=True,
        compact=True,
        speed=False,
        load=wanted.load,
    )
    outputs = []
    with compare.reading_base(compare.prepare(comparison), listener) as held_against:
        for one in report.outputs:
            ours = held_against(read_gguf(one.output.path)).texts
            plain: dict[str, Divergence] = {}
            if laid.request.moments and one.variant.mix.file_type.qtype is not None:
                plain = held_against(read_gguf(_rounded_plainly(laid, one.variant, listener))).texts
            texts = tuple(_check(text, found, plain.get(text)) for text, found in ours.items())
            for text in texts:
                if text.got_worse:
                    listener.warn(
                        f"{one.output.path}: on {text.text} calibrated rounding is worse than plain rounding, "
                        f"{text.kld:.4f} against {text.plain_kld:.4f} nats: calibrate with text of that kind too"
                    )
            outputs.append(replace(one, texts=texts))
    return replace(report, outputs=tuple(outputs))


def _check(text: str, ours: Divergence, plain: Divergence | None) -> TextCheck:
    if plain is None:
        return TextCheck(text, ours.kld.value, ours.kld.error)
    return TextCheck(text, ours.kld.value, ours.kld.error, plain.kld.value, plain.kld.error)


def _rounded_plainly(laid: Groundwork, variant: Variant, listener: Listener) -> Path:
    """Write the types of a variant again, each weight rounded to the nearest level."""
    path = laid.folder / "plain.gguf"
    listener.say(f"{variant.mix.name}: the same types are rounded plainly for now, to be compared with")
    types = {choice.name: choice.qtype for choice in variant.choices}
    mix = by_table(variant.mix.name, variant.mix.file_type, types)
    options = {**PLAIN, "options": replace(laid.request.options, tensor_types=())}
    asked = replace(laid.request, mixes=(mix,), outfile=str(path), force=True, **options)
    quantize.run(quantize.prepare(asked), listener)
    return path
