"""Files of one source compared with it in as few passes as there are ways in which they were rounded.

What each file says it was made with decides what its tensors are made again with: nothing, an importance matrix that is
given or lies beside it, or moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.moments import MomentsFile
from ..formats.words import count
from ..jobs.listener import Listener
from ..jobs.source_plan import SourcePlan
from ..quantize.encode import Encoder
from ..quantize.imatrix import load_imatrix
from ..quantize.rounding.calibration import Calibration, check_model
from ..writer.plan import Plan
from .blame import Blame, counts_of
from .problems import FileReport
from .rederive import Compared, Subject, comparable, rederive, slabs_of
from .stated_mix import StatedMix

File = tuple[FileReport, Plan, StatedMix]


@dataclass(frozen=True)
class Making:
    """What files were made with, as far as it was told; `sample` is rows of each expert and matrix, None all."""

    imatrix: Path | None = None
    moments: Path | None = None
    sample: int | None = None
    n_threads: int | None = None


@dataclass(frozen=True)
class _Pass:
    """Files that were rounded alike; `explained` when what they were made with is not here: bytes may differ."""

    files: list[File]
    imatrix: Path | None = None
    moments: Path | None = None
    explained: bool = False


def compare_all(
    making: Making, folder: Path, files: Sequence[File], source: SourcePlan, listener: Listener
) -> str | None:
    """Compare all files, note in their reports what is wrong, and return in words how much was looked at."""
    n_checked = n_all = 0
    for one in _passes(making, folder, files):
        checked, whole = _compare(making, one, source, listener)
        n_checked, n_all = n_checked + checked, n_all + whole
    return coverage_in_words(n_checked, n_all) if files else None


def _passes(making: Making, folder: Path, files: Sequence[File]) -> list[_Pass]:
    """Sort files by what they say they were made with; an imatrix that is given is everyone's if nobody names one."""
    passes: dict[tuple[Path | None, Path | None, bool], _Pass] = {}
    nobody = not any(mix.imatrix or mix.moments for _, _, mix in files)
    for file in files:
        report, plan, mix = file
        imatrix = making.imatrix if mix.imatrix or nobody else None
        moments = making.moments if mix.moments or (nobody and not making.imatrix) else None
        if mix.imatrix and imatrix is None:
            named = str(plan.fields["quantize.imatrix.file"].value).replace("\\", "/").rpartition("/")[2]
            beside = folder / named
            imatrix = beside if named and beside.is_file() else None
        explained = bool((mix.imatrix and imatrix is None) or (mix.moments and moments is None))
        if explained:
            report.notes.append("what it was made with is not here (--imatrix, --moments): other bytes can be right")
        passes.setdefault((imatrix, moments, explained), _Pass([], imatrix, moments, explained)).files.append(file)
    return list(passes.values())


def _compare(making: Making, one: _Pass, source: SourcePlan, listener: Listener) -> tuple[int, int]:
    """Make one pass over the source; return the bytes that were compared and those that there are."""
    from ..runner.threads import best_thread_count

    encoder = _encoder(one, source.plan)
    subjects = [Subject(plan, comparable(plan, source.plan)) for _, plan, _ in one.files]
    wanted = {name for subject in subjects for name in subject.tensors}
    slabs = [slab for slab in slabs_of(source.plan, making.sample) if source.plan.tensors[slab.index].name in wanted]
    n_weights = sum((slab.stop - slab.start) * source.plan.tensors[slab.index].row_length for slab in slabs)
    listener.say(f"{source.name}: {count(len(wanted), 'tensor')} made again for {count(len(subjects), 'file')}")
    n_threads = making.n_threads or best_thread_count()
    with listener.bar(n_weights, "compare", " weights") as bar:
        found = rederive(source.plan, subjects, encoder, slabs, n_threads, bar.update)
    for qtype in encoder.fallen_back:
        listener.warn(f"{qtype.name}: this llama.cpp computes differently from our kernel; its own encoder was used")
    for (report, plan, _), compared in zip(one.files, found, strict=True):
        report.tensors = counts_of(compared, len(plan.tensors))
        if n_tensors := sum(one.n_by_f16 > 0 for one in compared.values()):
            report.notes.append(f"{count(n_tensors, 'tensor')} with rows that were F16 before they were quantized")
        report.problems += Blame(source.plan, plan, encoder).problems(compared, not one.explained)
    return sum(map(_n_checked, found)), sum(_n_bytes(plan) for _, plan, _ in one.files)


def _encoder(one: _Pass, plan: Plan) -> Encoder:
    """Return what makes the bytes of a pass."""
    if one.moments:
        moments = MomentsFile(one.moments)
        check_model(moments, plan)
        return Encoder(calibration=Calibration(moments))
    if one.imatrix:
        matrix = load_imatrix(one.imatrix)
        return Encoder(lambda tensor: matrix.for_tensor(tensor.name, tensor.shape))
    return Encoder()


def _n_checked(found: dict[str, Compared]) -> int:
    return sum(one.n_bytes for one in found.values())


def _n_bytes(plan: Plan) -> int:
    from gguf.constants import GGMLQuantizationType

    from ..formats.gguf_file import tensor_bytes

    known = GGMLQuantizationType.__members__
    return sum(tensor_bytes(one.shape, known[one.source_type]) for one in plan.tensors if one.source_type in known)


def coverage_in_words(n_checked: int, n_all: int) -> str:
    """Say how much of the tensors was compared, and what the odds are that a flipped byte was missed."""
    if n_checked >= n_all:
        return "every byte of every tensor was compared"
    missed = 1 - n_checked / max(n_all, 1)
    return (
        f"{n_checked:,} of {n_all:,} bytes of tensors were compared, in every expert and matrix: a single flipped byte "
        f"is missed with a probability of {100 * missed:.1f} %, an exchanged expert or another rounding is not"
    )
