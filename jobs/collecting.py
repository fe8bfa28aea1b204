"""Texts run through a model while sums and moments of what its matrices take are collected; interrupted runs go on.

Long because one pass feeds two files that must agree on what they have seen.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gguf.constants import Keys

from ..formats.errors import ImatrixError, Interrupted
from .listener import Listener
from .loading import DEFAULT_LOAD, LoadRequest, opened_model
from .scoring import measuring

if TYPE_CHECKING:
    import numpy as np

    from ..formats.gguf_file import GgufFile
    from ..measure.chunks import CalibrationText
    from ..measure.importance import Importance, Sums
    from ..measure.moments import Moments, Source
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model

SAVE_EVERY = 60.0
RUN, DONE = "moe-gguf.run", "moe-gguf.chunks_done"


@dataclass(frozen=True)
class Request:
    """A GGUF file or a name of `catalogue`, texts, and the file to write.

    - texts: files; none is the text that ships, or nothing but `in_files`, which are added up.
    - n_ctx, n_chunk: tokens of a chunk, and how many chunks; None is all of the texts.
    - text_names: what the file calls the texts; none is their paths.
    - coverage: go on beyond n_chunk until every expert has seen so many tokens; `raise_experts` then uses more
      experts per token, when the texts end before.
    - moments: the file of second moments to write too, with at most `memory` bytes of sums at a time.
    """

    model: str | Path | None
    output: Path
    texts: tuple[Path, ...] = ()
    text_names: tuple[str, ...] = ()
    catalogue: Path | None = None
    in_files: tuple[Path, ...] = ()
    output_format: Literal["gguf", "dat"] = "gguf"
    n_ctx: int = 512
    n_chunk: int | None = None
    process_output: bool = False
    parse_special: bool = False
    coverage: int | None = None
    raise_experts: bool = True
    moments: Path | None = None
    memory: int | None = None
    force: bool = False
    load: LoadRequest = DEFAULT_LOAD

    @property
    def merges_only(self) -> bool:
        """Whether files are added up, and no text is read."""
        return bool(self.in_files) and not self.texts


@dataclass(frozen=True)
class MomentsReport:
    """The file of moments, its inputs, the passes over the text that they took, and its size."""

    path: Path
    n_entry: int
    n_pass: int
    n_bytes: int


def partial_path(output: Path) -> Path:
    """Return where an interrupted run's sums lie."""
    return output.with_name(output.name + ".partial")


class Collecting:
    """The texts' way through the model: what is collected, what an earlier run left, and when it is enough."""

    def __init__(
        self, request: Request, file: "GgufFile", texts: "tuple[CalibrationText, ...] | None", listener: Listener
    ) -> None:
        self.request, self.file, self.texts, self.listener = request, file, texts, listener
        self.datasets: list[str] = []
        self.partial = partial_path(self.request.output)
        self._saved = time.monotonic()
        self._kept: tuple[int, dict[str, tuple[np.ndarray, np.ndarray]]] = (0, {})

    def run(self) -> "tuple[dict[str, Sums], int, MomentsReport | None]":
        """Return the sums by matrix, the chunks they are of, and what became of the moments."""
        from ..measure.importance import Importance, by_weight

        importance = Importance()
        with opened_model(self.file.path, measuring(self.request.load, self.request.n_ctx), self.listener) as (
            model,
            options,
        ):
            self._prepare(model, options)
            done = self._resume(importance)
            moments = self._collect(model, options, importance, done)
        if self.request.coverage and self.request.raise_experts and not self._covered(importance):
            self._raise_experts(importance)
        return by_weight(importance.sums, self.shared), self.done, moments

    def _prepare(self, model: "Model", options: "LoadOptions") -> None:
        """Tokenize, and find out which matrices take which input."""
        from ..measure.calibration_text import shipped_text
        from ..measure.chunks import cut_chunks, digest
        from ..measure.importance import wanted

        texts = self.texts if self.texts is not None else (shipped_text(model),)
        self.datasets = [text.name for text in texts]
        self.chunks = cut_chunks(model, texts, self.request.n_ctx)
        self.least = len(self.chunks) if self.request.n_chunk is None else min(self.request.n_chunk, len(self.chunks))
        if not self.request.coverage:
            self.chunks = self.chunks[: self.least]
        state = self.file.path.stat()
        same = (state.st_size, state.st_mtime_ns, self.request.process_output, options.n_batch)
        self.digest = " ".join(map(str, (digest(self.chunks), *same)))
        self.wants = wanted(self.request.process_output)
        self.wants_moments = lambda name: self.wants(name) or name in ("output.weight", "token_embd.weight")
        heard = survey(model, options, self.wants_moments if self.request.moments else self.wants)
        self.shared, self.sources, self.averaged = heard
        self.last = next((names[-1] for names in reversed(self.shared.values())), None)

    def _resume(self, importance: "Importance") -> int:
        """Take up what an interrupted run of the same left; return how many chunks it had done."""
        from ..formats.imatrix_file import read_gguf_imatrix
        from ..measure.importance import Sums

        if not self.partial.exists():
            return 0
        try:
            left = read_gguf_imatrix(self.partial)
            done = int(left.notes.get(DONE, "0"))
        except (ImatrixError, ValueError):
            return 0
        if left.notes.get(RUN) != self.digest:
            return 0
        for name, (sums, counts) in left.entries.items():
            if name in self.shared:
                importance.sums[name] = Sums(sums.astype("f4"), counts, 0 * counts)
        self.listener.say(f"going on after {done} chunks, from {self.partial}")
        return done

    def _keep(self, importance: "Importance", done: int) -> None:
        """Remember what was collected of the first `done` chunks: a batch that is cut short spoils the sums."""
        if importance.needs is None:
            entries = {name: (found.values.copy(), found.counts.copy()) for name, found in importance.sums.items()}
            self._kept = done, entries

    def _save(self) -> int:
        """Put what was remembered into a file beside the output; return how many chunks it is of."""
        from ..formats.imatrix_file import ImatrixFile, write_gguf_imatrix

        done, entries = self._kept
        if entries:
            notes = {RUN: self.digest, DONE: str(done)}
            datasets = tuple(self.datasets)
            write_gguf_imatrix(self.partial, ImatrixFile(entries, datasets, done, self.request.n_ctx, notes))
        self._saved = time.monotonic()
        return done

    def _covered(self, importance: "Importance") -> bool:
        counts = [found.counts for name, found in importance.sums.items() if "_exps." in name]
        return all(each.min() >= (self.request.coverage or 0) for each in counts)

    def _collect(
        self, model: "Model", options: "LoadOptions", importance: "Importance", done: int
    ) -> MomentsReport | None:
        """Run the chunks as often as the moments need; the first time, sums are collected from chunk `done` on."""
        if self.request.moments is None:
            self._pass(model, options, importance, None, done)
            return None
        from ..formats.moments import MomentsInfo, MomentsWriter
        from ..measure import moments as measure

        memory = self.request.memory or free_memory()
        entries = measure.plan(self.sources, self.file, memory)
        chunks = self.chunks
        info = MomentsInfo(
            measure.digest_of(self.file), self.digest.split()[0], " ".join(self.datasets), self.request.n_ctx, entries
        )
        with MomentsWriter(self.request.moments, info) as writer:
            if writer.resumed and len(writer.missing) < len(entries):
                self.listener.say(f"{len(entries) - len(writer.missing)} of {len(entries)} inputs' moments are there")
            passes = measure.passes(writer.missing, memory)
            if len(passes) > 1:
                self.listener.say(f"the moments take {len(passes)} passes over the text; --moments-memory changes that")
            for each in passes:
                with measure.Moments(each.entries, options.n_threads or default_threads()) as moments:
                    self._pass(model, options, importance, moments, done)
                    moments.each(lambda entry, found: writer.put(entry, found))
                done = len(chunks)
            if not passes:
                self._pass(model, options, importance, None, done)
            writer.finish()
        return MomentsReport(self.request.moments, len(entries), len(passes), self.request.moments.stat().st_size)

    def _pass(
        self,
        model: "Model",
        options: "LoadOptions",
        importance: "Importance",
        moments: "Moments | None",
        done: int,
    ) -> None:
        """Decode the chunks once: moments take all of them, sums those from number `done` on."""
        from threadpoolctl import threadpool_limits

        from ..measure.chunks import chunks_at_once, decode_chunks
        from ..measure.importance import LAYERS
        from ..runner.products import Input, Products
        from ..runner.tap import TappedEngine

        at = 0 if moments else done

        def take(given: "Input") -> None:
            if at >= done and (given.weight.startswith(LAYERS) or self.wants(given.weight)):
                importance.add(given)
            if moments:
                moments.add(given, [name for name in self.shared[given.weight] if name not in self.averaged])

        def take_average(given: "Input") -> None:
            assert moments
            moments.add(given, [given.weight])

        if at >= len(self.chunks):
            self.done = len(self.chunks)
            return
        wants, averaged = (self.wants_moments, self.averaged & moments.names) if moments else (self.wants, ())
        products = Products(wants, take, self.last, moments is not None, averaged, take_average)
        with ExitStack() as stack:
            stack.enter_context(threadpool_limits(1, "blas"))
            engine = stack.enter_context(TappedEngine(model, options, products))
            bar = stack.enter_context(self.listener.bar(len(self.chunks), "imatrix", "chunks"))
            bar.update(at)
            at_once = chunks_at_once(engine, self.request.n_ctx)
            importance.where = place(at, at_once, len(self.chunks))
            with self._interrupted():
                for now in decode_chunks(engine, self.chunks, at):
                    bar.update(now - at)
                    at = now
                    products.averages.clear()
                    importance.where = place(at, at_once, len(self.chunks))
                    if at > done:
                        self._keep(importance, at)
                        if time.monotonic() - self._saved > SAVE_EVERY:
                            self._save()
                    if self.request.coverage and at >= self.least and not moments and self._covered(importance):
                        break
                if moments:
                    moments.flush()
        self.done = at

    @contextmanager
    def _interrupted(self) -> "Iterator[None]":
        """Keep what there is when Ctrl-C comes, and say so in one line."""
        from ..runner.engine import Cancelled

        try:
            yield
        except (KeyboardInterrupt, Cancelled):
            if done := self._save():
                raise Interrupted(
                    f"interrupted; {self.partial} keeps {done} of {len(self.chunks)} chunks; the same command goes on"
                ) from None
            raise Interrupted("interrupted; nothing was kept yet") from None

    def _raise_experts(self, importance: "Importance") -> None:
        """Use ever more experts per token, and count those above the model's own for experts that lack tokens."""
        n_expert, n_used = (self.file.hyper(key, 0) for key in (Keys.LLM.EXPERT_COUNT, Keys.LLM.EXPERT_USED_COUNT))
        own = self.request.load.n_expert_used or n_used
        wanted, n_chunk = self.request.coverage or 0, self.done
        importance.n_own, importance.needs = own, lambda weight: importance.sums[weight].counts < wanted
        self.least = 0
        used = own
        while used < n_expert and not self._covered(importance):
            used = min(2 * used, n_expert)
            self.listener.say(f"some experts saw fewer than {wanted} tokens; reading again with {used} per token")
            load = measuring(replace(self.request.load, n_expert_used=used), self.request.n_ctx)
            with opened_model(self.file.path, load, self.listener) as (model, options):
                self._pass(model, options, importance, None, 0)
        self.done = n_chunk


def place(start: int, n: int, n_chunk: int) -> str:
    """Say which chunks are decoded from number `start` on, n at once, for a message."""
    last = min(start + n, n_chunk) - 1
    return f"in chunk {start}" if start >= last else f"in chunks {start} to {last}"


def survey(
    model: "Model", options: "LoadOptions", wanted: Callable[[str], bool]
) -> "tuple[dict[str, list[str]], list[Source], frozenset[str]]":
    """Return which matrices share an input, by the first of them in the graph's order, and what inputs there are.

    Last come the matrices whose input is a source of its own, for it counts as attention averages it.
    """
    import numpy as np

    from ..measure.moments import Source
    from ..runner.engine import Cancelled
    from ..runner.products import LEAST_ROWS, Survey
    from ..runner.tap import TappedEngine

    survey = Survey(wanted, multiplied(model.file, wanted), lambda: engine.cancel())
    with TappedEngine(model, options, survey) as engine, suppress(Cancelled):
        engine.decode_marked([(0, [0] * LEAST_ROWS)], np.ones(LEAST_ROWS, np.bool_))
    sources, averaged = [], frozenset(survey.averaged)
    for leader, size in survey.sizes.items():
        together = tuple(name for name in survey.shared[leader] if name not in averaged)
        alone = ((name,) for name in survey.shared[leader] if name in averaged)
        sources += [Source(weights, *size) for weights in (together, *alone) if weights]
    return survey.shared, sources, averaged


def multiplied(file: "GgufFile", wanted: Callable[[str], bool]) -> list[str]:
    """Return the wanted matrices that a graph multiplies by, as far as a header tells: embeddings only as an output."""
    spare = "token_embd.weight" if "output.weight" in file.tensors else ""
    tensors = file.tensors.values()
    return [
        each.name for each in tensors if sum(n > 1 for n in each.shape) > 1 and each.name != spare and wanted(each.name)
    ]


def default_threads() -> int:
    """Return the threads that llama.cpp computes with by default."""
    from ..runner.threads import best_thread_count

    return best_thread_count()


def free_memory() -> int:
    """Return half of the memory that is free, rounded down to a power of two so that a run that goes on agrees."""
    import psutil

    return 1 << (int(psutil.virtual_memory().available) // 2).bit_length() - 1
