"""What quantizations change: a base and variants of it read the same texts, and their predictions are compared.

The base is read once. Its log probabilities are stored, in llama.cpp's form or in a compact one, and each variant is
held against them window by window.

Long because the pass over the base and that over a variant must do the same, in the same order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from ..formats.errors import EngineError, OutputError
from ..formats.gguf_file import GgufFile, read_gguf, same_file
from ..measure.agreement import Agreement, Routing, load_choices, routes, save_choices
from ..measure.answers import first_difference, greedy_answers
from ..measure.divergence import Divergence, perplexity_of
from ..measure.logits_file import COMPACT, STOCK, Layout, LogitsWriter, StoredLogits, model_digest
from ..measure.size_plot import Point, check_plot, draw
from ..measure.windows import Windows, cut_windows, read_strict_text, scored_logits, windows_of
from .compare_report import BaseReport, Report, VariantReport
from .listener import SILENT, Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_engine
from .scoring import going_on, measuring
from .sources import resolve_gguf
from .working_files import roomy_cache

if TYPE_CHECKING:
    from ..runner.engine import Engine

GENERATED = 32
KEPT = "prune.experts.kept"  # what says that a file is another one with fewer experts


@dataclass(frozen=True)
class Request:
    """A base and variants (GGUF files or names of `catalogue`), and texts as (name, file).

    `n_chunk` is the most windows of each text: the first ones or, with `spread`, some from all over it. `base_logits`
    is a file of an earlier run that saves reading the base, `save_logits` one to write, in llama.cpp's form or, with
    `compact`, in half of its size. `prompts` are answered greedily by all. `speed` False leaves out the measurement of
    generation. `plots` are pictures to draw, PNG or SVG.
    """

    base: str | Path | None
    variants: tuple[str | Path, ...]
    texts: tuple[tuple[str, Path], ...]
    catalogue: Path | None = None
    n_ctx: int = 512
    n_chunk: int | None = None
    spread: bool = False
    base_logits: Path | None = None
    save_logits: Path | None = None
    compact: bool = False
    prompts: tuple[str, ...] = ()
    n_predict: int = 64
    speed: bool = True
    plots: tuple[Path, ...] = ()
    load: LoadRequest = DEFAULT_LOAD


@dataclass(frozen=True)
class Prepared:
    """Files whose headers were read and found to belong together, and texts that were read."""

    request: Request
    base: GgufFile
    variants: tuple[GgufFile, ...]
    texts: tuple[tuple[str, str], ...]


@dataclass
class _Reference:
    """The base's predictions: stored, with its choices of experts by window where they are known."""

    stored: StoredLogits
    windows: Windows
    names: list[str]
    report: BaseReport
    choices: dict[int, dict[int, np.ndarray]] = field(default_factory=dict)


def prepare(request: Request) -> Prepared:
    """Read headers and texts. Raises EngineError for variants that are no variants of the base, and for no text."""
    from gguf.constants import Keys

    for plot in request.plots:
        check_plot(plot)
    base = read_gguf(resolve_gguf(request.base, request.catalogue))
    variants = tuple(read_gguf(resolve_gguf(variant, request.catalogue)) for variant in request.variants)
    keys = {"vocabulary": Keys.Tokenizer.LIST}
    numbers = {"experts": Keys.LLM.EXPERT_COUNT, "layers": Keys.LLM.BLOCK_COUNT, "width": Keys.LLM.EMBEDDING_LENGTH}
    for variant in variants:
        different = [name for name, key in keys.items() if base.metadata.get(key) != variant.metadata.get(key)]
        if different:
            raise EngineError(
                f"{variant.path}: has another vocabulary than {base.path.name}, so it is no variant of it"
            )
        for name, key in numbers.items():
            theirs, ours = base.hyper(key), variant.hyper(key)
            if theirs != ours and not (name == "experts" and KEPT in variant.metadata):
                raise EngineError(
                    f"{variant.path}: {name} {ours}, the base has {theirs}: it is no variant of {base.path.name}"
                )
    if request.save_logits and any(same_file(request.save_logits, file) for file in _inputs(request, base, variants)):
        raise OutputError(f"{request.save_logits}: the output is an input; choose another name")
    if request.save_logits and request.save_logits.exists():
        raise OutputError(f"{request.save_logits}: exists already; use it with --base-logits, or choose another name")
    return Prepared(request, base, variants, tuple((name, read_strict_text(path)) for name, path in request.texts))


def run(
    prepared: Prepared,
    listener: Listener = SILENT,
    found: Callable[[BaseReport | VariantReport], object] = lambda report: None,
) -> Report:
    """Read the base, then each variant; `found` is told of each as soon as it is read.

    Raises EngineError; Ctrl-C leaves logits that are saved to be gone on with.
    """
    variants: list[VariantReport] = []
    with _reference(prepared, listener) as reference:
        found(reference.report)
        for file in prepared.variants:
            variants.append(_variant(prepared, file, reference, listener))
            found(variants[-1])
        n_token = reference.windows.n_chunk * reference.windows.n_scored
        report = Report(reference.report, tuple(variants), reference.windows.n_chunk, n_token)
    for plot in prepared.request.plots:
        _draw(report, plot)
    return report


@contextmanager
def reading_base(prepared: Prepared, listener: Listener = SILENT) -> Iterator[Callable[[GgufFile], VariantReport]]:
    """Read the base once; yields what holds a file against it, for variants that come one at a time."""
    with _reference(prepared, listener) as reference:
        yield lambda file: _variant(prepared, file, reference, listener)


def _draw(report: Report, path: Path) -> None:
    names = _told_apart([one.path.stem for one in report.variants])
    points = [
        Point(name, one.n_bytes, one.divergence.kld.value, one.divergence.kld.error)
        for name, one in zip(names, report.variants, strict=True)
    ]
    draw(points, report.base.path.stem, report.base.noise_floor, path)


def _told_apart(stems: Sequence[str]) -> list[str]:
    """Return names without the words that all of them begin with: "Q4_K_M" of "Bruce-4x7B-Q4_K_M"."""
    words = [stem.split("-") for stem in stems]
    while len(words) > 1 and all(len(one) > 1 for one in words) and len({one[0] for one in words}) == 1:
        words = [one[1:] for one in words]
    return ["-".join(one) for one in words]


def _inputs(request: Request, base: GgufFile, variants: Sequence[GgufFile]) -> list[Path]:
    return [base.path, *(file.path for file in variants), *(path for _, path in request.texts)]


def _cut(engine: "Engine", prepared: Prepared) -> tuple[Windows, list[str]]:
    """Return the windows of all texts, one after the other, and the name of the text that each is of."""
    request = prepared.request
    found = [
        (name, cut_windows(engine.model, text, request.n_ctx, request.n_chunk, name, request.spread))
        for name, text in prepared.texts
    ]
    names = [name for name, windows in found for _ in range(windows.n_chunk)]
    return windows_of(engine.model, np.concatenate([windows.tokens for _, windows in found])), names


@contextmanager
def _reference(prepared: Prepared, listener: Listener) -> Iterator[_Reference]:
    """Read the base, or what an earlier run stored of it."""
    if prepared.request.base_logits:
        yield _stored_reference(prepared, prepared.request.base_logits, listener)
    elif prepared.request.save_logits:
        yield _read_base(prepared, prepared.request.save_logits, listener)
    else:
        with TemporaryDirectory(prefix="moe-gguf-logits-", dir=roomy_cache(0)) as folder:
            yield _read_base(prepared, Path(folder) / "base.logits", listener)


def _read_base(prepared: Prepared, path: Path, listener: Listener) -> _Reference:
    from ..measure import distributions
    from ..measure.trouble import demand_finite
    from ..runner.interrupt import on_interrupt

    request, file = prepared.request, prepared.base
    routing = Routing(int(np.max(file.hyper("{arch}.expert_count") or 0))) if routes(file) else None
    load = measuring(request.load, request.n_ctx)
    saved = f"run the same command again to go on with {path}" if request.save_logits else "nothing was kept"
    on_eval = routing.tap.callback if routing else None
    with opened_engine(file.path, load, listener, on_eval) as engine, on_interrupt(engine.cancel), going_on(saved):
        windows, names = _cut(engine, prepared)
        magic, digest = (COMPACT, model_digest(file)) if request.compact else (STOCK, b"")
        layout = Layout(magic, request.n_ctx, engine.model.n_vocab, windows.n_chunk, digest)
        if not request.save_logits:
            roomy_cache(layout.n_bytes)
        writer = LogitsWriter(path, layout, windows)
        if writer.done:
            listener.say(f"{path}: {writer.done} of {windows.n_chunk} windows are there; going on")
        losses, floor = [], []
        choices = load_choices(path) if writer.done else {}
        found = np.empty((windows.n_scored, 6))
        started, begun = time.monotonic(), writer.done
        try:
            with listener.bar(windows.n_chunk, f"read {file.path.name}", " chunks") as bar:
                bar.update(begun)
                for chunk, logits in scored_logits(engine, windows, begun):
                    targets = windows.targets(chunk)
                    if routing and (chosen := routing.window()):
                        choices[chunk] = chosen
                    losses.append(writer.add(logits, targets))
                    demand_finite(engine, losses[-1], windows, chunk)
                    distributions.in_threads(distributions.diverge, logits, writer.last(targets), targets, found)
                    floor.append(found[:, 2].copy())
                    bar.update(1)
            seconds = time.monotonic() - started
            writer.finish()
        finally:
            writer.close()
            if request.save_logits and choices:
                save_choices(choices, path)
        answers = greedy_answers(engine, request.prompts, request.n_predict)
    stored = StoredLogits(path)
    if begun:
        losses = _stored_losses(stored)
    report = BaseReport(
        file.path,
        perplexity_of(np.concatenate(losses), windows.n_chunk).ppl,
        float(np.concatenate(floor).mean()) if floor else None,
        (windows.n_chunk - begun) * windows.n_ctx / seconds if windows.n_chunk > begun else None,
        answers,
    )
    return _Reference(stored, windows, names, report, choices)


def _stored_reference(prepared: Prepared, path: Path, listener: Listener) -> _Reference:
    """Take what an earlier run, or llama-perplexity, stored: of the same text and, as far as can be told, model."""
    from ..measure import distributions

    request, file = prepared.request, prepared.base
    stored = StoredLogits(path)
    if stored.layout.magic == COMPACT and stored.layout.model != model_digest(file):
        raise EngineError(f"{path}: logits of another model than {file.path}; save them again with --save-logits")
    with opened_engine(file.path, measuring(request.load, stored.layout.n_ctx), listener) as engine, going_on():
        if stored.layout.n_vocab != engine.model.n_vocab:
            raise EngineError(
                f"{path}: logits of a model with {stored.layout.n_vocab} tokens, {file.path.name} has "
                f"{engine.model.n_vocab}; save them again with --save-logits"
            )
        windows, names = _cut_like(engine, prepared, stored)
        first = next(iter(scored_logits(engine, windows)))[1]
        found = np.empty((windows.n_scored, 6))
        base = stored.window(0, np.empty((windows.n_scored, stored.layout.n_vocab), np.float32))
        distributions.in_threads(distributions.diverge, first, base, windows.targets(0), found)
        if not abs(float(found[:, 2].mean())) < 0.01:
            raise EngineError(
                f"{path}: logits of another model: their first window differs from {file.path.name}'s by "
                f"{found[:, 2].mean():.3f} nats a token; save them again with --save-logits"
            )
        answers = greedy_answers(engine, request.prompts, request.n_predict)
    ppl = perplexity_of(np.concatenate(_stored_losses(stored)), windows.n_chunk).ppl
    report = BaseReport(file.path, ppl, None, None, answers)
    return _Reference(stored, windows, names, report, load_choices(path))


def _cut_like(engine: "Engine", prepared: Prepared, stored: StoredLogits) -> tuple[Windows, list[str]]:
    """Return the stored windows and the names of their texts. Raises EngineError when the texts are others."""
    request = prepared.request
    if stored.layout.n_ctx != request.n_ctx:
        raise EngineError(f"{stored.path}: windows of {stored.layout.n_ctx} tokens; use -c {stored.layout.n_ctx}")
    windows, names = _cut(engine, prepared)
    n_chunk = stored.layout.n_chunk
    if n_chunk > windows.n_chunk or not np.array_equal(windows.tokens[:n_chunk], stored.tokens):
        raise EngineError(f"{stored.path}: logits of another text than {', '.join(name for name, _ in prepared.texts)}")
    return Windows(stored.tokens, windows.bos), names[:n_chunk]


def _stored_losses(stored: StoredLogits) -> list[np.ndarray]:
    layout, found = stored.layout, []
    out = np.empty((layout.n_scored, layout.n_vocab), np.float32)
    for chunk in range(layout.n_chunk):
        targets = stored.tokens[chunk, layout.n_ctx // 2 + 1 :]
        found.append(-stored.window(chunk, out)[np.arange(layout.n_scored), targets].astype(np.float64))
    return found


def _variant(prepared: Prepared, file: GgufFile, reference: _Reference, listener: Listener) -> VariantReport:
    from ..measure import distributions
    from ..measure.speed import Work, measure
    from ..measure.trouble import demand_finite
    from ..models.summary import summarize_gguf
    from ..runner.interrupt import on_interrupt

    request, windows, stored = prepared.request, reference.windows, reference.stored
    n_expert = int(np.max(file.hyper("{arch}.expert_count") or 0))
    same_experts = n_expert == int(np.max(prepared.base.hyper("{arch}.expert_count") or 0))
    routing = Routing(n_expert) if reference.choices and same_experts else None
    agreement = Agreement() if routing else None
    load = measuring(request.load, windows.n_ctx)
    on_eval = routing.tap.callback if routing else None
    with opened_engine(file.path, load, listener, on_eval) as engine, on_interrupt(engine.cancel), going_on():
        base = np.empty((windows.n_scored, stored.layout.n_vocab), np.float32)
        tokens = np.empty((windows.n_chunk, windows.n_scored, 6))
        started = time.monotonic()
        with listener.bar(windows.n_chunk, f"read {file.path.name}", " chunks") as bar:
            for chunk, logits in scored_logits(engine, windows):
                if routing and agreement and (chosen := routing.window()) and chunk in reference.choices:
                    agreement.add(reference.choices[chunk], chosen)
                stored.window(chunk, base)
                distributions.in_threads(distributions.diverge, logits, base, windows.targets(chunk), tokens[chunk])
                demand_finite(engine, tokens[chunk, :, 0], windows, chunk)
                bar.update(1)
        prompt_speed = windows.n_chunk * windows.n_ctx / (time.monotonic() - started)
        speed = measure(engine, Work(0, GENERATED), 1).rate if request.speed else None
        ours = greedy_answers(engine, request.prompts, request.n_predict)
    names = np.asarray(reference.names)
    by_text = {name: Divergence(tokens[names == name].reshape(-1, 6)) for name in dict.fromkeys(reference.names)}
    summary = summarize_gguf(file)
    return VariantReport(
        file.path,
        sum(shard.stat().st_size for shard in file.shards),
        summary.bits_per_weight,
        Divergence(tokens.reshape(-1, 6)),
        by_text,
        agreement,
        prompt_speed,
        speed,
        tuple(first_difference(base, one) for base, one in zip(reference.report.answers, ours, strict=True)),
    )
