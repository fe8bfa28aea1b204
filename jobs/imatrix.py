"""Importance matrices, and moments for calibrated rounding: a model and texts in, llama.cpp's files out."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.errors import ImatrixError, OutputError, PlanError
from .collecting import Collecting, MomentsReport, Request, partial_path
from .listener import SILENT, Listener
from .sources import resolve_gguf

if TYPE_CHECKING:
    import numpy as np

    from ..formats.gguf_file import GgufFile
    from ..formats.imatrix_file import ImatrixFile
    from ..measure.chunks import CalibrationText
    from ..measure.importance import Sums

APART = "moe-gguf.tokens_apart"


@dataclass(frozen=True)
class Prepared:
    """The model's header, None where files are only added up; the texts, None for those that ship; files to add."""

    request: Request
    file: "GgufFile | None"
    texts: "tuple[CalibrationText, ...] | None"
    added: "tuple[ImatrixFile, ...]"


@dataclass(frozen=True)
class Layer:
    """How many tokens each expert of a layer has seen, and how many of them it would not have got by itself."""

    layer: int
    tokens: tuple[int, ...]
    apart: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What was written, from how much text, and how many tokens each expert saw."""

    output: Path
    datasets: tuple[str, ...]
    n_chunk: int
    n_ctx: int
    n_entry: int
    layers: tuple[Layer, ...]
    moments: MomentsReport | None
    seconds: float

    @property
    def least(self) -> int | None:
        """The fewest tokens that any expert has seen; None without experts."""
        return min((min(layer.tokens) for layer in self.layers), default=None)

    def as_json(self) -> dict[str, Any]:
        """Return what `imatrix --json` prints."""
        moments = self.moments
        return {
            "output": str(self.output),
            "datasets": list(self.datasets),
            "n_chunk": self.n_chunk,
            "n_ctx": self.n_ctx,
            "n_tokens": self.n_chunk * self.n_ctx,
            "n_entry": self.n_entry,
            "least": self.least,
            "coverage": [
                {"layer": each.layer, "tokens": list(each.tokens), "apart": list(each.apart)} for each in self.layers
            ],
            "moments": moments
            and {
                "path": str(moments.path),
                "n_entry": moments.n_entry,
                "n_pass": moments.n_pass,
                "bytes": moments.n_bytes,
            },
            "seconds": round(self.seconds, 3),
        }


def prepare(request: Request) -> Prepared:
    """Read the header, texts and files to add. Raises MoeGgufError for what does not fit together or is in the way."""
    from ..formats.gguf_file import read_gguf
    from ..formats.imatrix_file import read_gguf_imatrix
    from ..measure.chunks import CalibrationText

    outputs = [request.output, *([request.moments] if request.moments else [])]
    if request.merges_only and (request.moments or request.coverage):
        raise PlanError("moments and coverage need a text to be run: give one by -f")
    file = None
    if request.model is not None or not request.merges_only:
        file = read_gguf(resolve_gguf(request.model, request.catalogue))
    inputs = [*request.texts, *request.in_files, *(file.shards if file else ())]
    for output in outputs:
        check_output(output, inputs, request.force)
    if len({output.absolute() for output in outputs}) < len(outputs):
        raise OutputError(f"{request.output}: both files have this name; choose two")
    if request.coverage and file is not None and not any("_exps." in name for name in file.tensors):
        raise PlanError(f"{file.path}: has no experts, so --coverage has nothing to count")
    names = request.text_names or tuple(map(str, request.texts))
    texts = tuple(
        CalibrationText(name, read_strict(path), request.parse_special)
        for name, path in zip(names, request.texts, strict=True)
    )
    added = tuple(read_gguf_imatrix(path) for path in request.in_files)
    for path, matrix in zip(request.in_files, added, strict=True):
        check_belongs(path, matrix, file, added[0])
    return Prepared(request, file, texts or None, added)


def read_strict(path: Path) -> str:
    """Read a text file, less its last line break, as llama.cpp's -f does. Raises EngineError for what is no text."""
    from ..formats.errors import EngineError
    from ..formats.text_files import read_message_file

    text = read_message_file(path)
    if "\0" in text:
        raise EngineError(f"{path}: holds zero bytes, so it is no text; name a text file")
    return text.removesuffix("\n")


def check_output(output: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuse an output that is an input, exists, or has no folder. Raises OutputError."""
    from ..formats.gguf_file import same_file

    if any(same_file(output, path) for path in inputs):
        raise OutputError(f"{output}: the output is an input; choose another name")
    if output.is_dir():
        raise OutputError(f"{output}: is a folder; name a file")
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; create it first")
    if output.exists() and not force:
        raise OutputError(f"{output}: exists already; choose another name, or overwrite it with --force")


def check_belongs(path: Path, matrix: "ImatrixFile", file: "GgufFile | None", first: "ImatrixFile") -> None:
    """Raise ImatrixError when a matrix has sizes of another model than the file's, or than the first matrix."""
    for name, (sums, counts) in matrix.entries.items():
        if file is not None:
            tensor = file.tensors.get(name)
            fits = tensor is not None and sums.shape[1] == tensor.shape[0]
            fits = (
                fits and tensor is not None and sums.size in (sums.shape[1], tensor.shape[0] * _n_matrix(tensor.shape))
            )
            if not fits:
                raise ImatrixError(f"{path}: made for another model: {name} is not in {file.path}, or of another size")
        other = first.entries.get(name)
        if other is not None and (other[0].shape != sums.shape or len(other[1]) != len(counts)):
            raise ImatrixError(f"{path}: {name} has other sizes than in the first file; they are of different models")


def _n_matrix(shape: Sequence[int]) -> int:
    return shape[2] if len(shape) > 2 else 1


def run(prepared: Prepared, listener: Listener = SILENT) -> Report:
    """Run the texts, add the files, write. Raises MoeGgufError; Interrupted after Ctrl-C, with what is kept."""
    from ..formats.imatrix_file import write_gguf_imatrix, write_legacy_imatrix

    request, started = prepared.request, time.perf_counter()
    collected: dict[str, Sums] = {}
    datasets = [name for matrix in prepared.added for name in matrix.datasets]
    moments, n_chunk = None, 0
    if not request.merges_only:
        assert prepared.file is not None
        collecting = Collecting(request, prepared.file, prepared.texts, listener)
        collected, n_chunk, moments = collecting.run()
        datasets += collecting.datasets
    merged = merge(prepared.added, collected)
    n_ctx = request.n_ctx if n_chunk or not prepared.added else prepared.added[0].n_ctx
    total = max((int(counts.max()) for _, counts in merged.values()), default=0) // max(n_ctx, 1)
    layers = coverage_of(merged, collected)
    notes = {}
    if any(sum(layer.apart) for layer in layers):
        notes[APART] = json.dumps({layer.layer: layer.apart for layer in layers})
    from ..formats.imatrix_file import ImatrixFile

    matrix = ImatrixFile(merged, tuple(datasets), total, n_ctx, notes)
    (write_legacy_imatrix if request.output_format == "dat" else write_gguf_imatrix)(request.output, matrix)
    partial_path(request.output).unlink(missing_ok=True)
    if blind := [layer for layer in layers if not min(layer.tokens)]:
        listener.warn(
            f"{sum(n == 0 for layer in blind for n in layer.tokens)} experts of {len(blind)} layers saw no token; "
            "their weights will count alike. Give more text, or --coverage"
        )
    seconds = time.perf_counter() - started
    return Report(request.output, tuple(datasets), n_chunk, n_ctx, len(merged), layers, moments, seconds)


def merge(added: "Sequence[ImatrixFile]", collected: "dict[str, Sums]") -> "dict[str, tuple[np.ndarray, np.ndarray]]":
    """Return the sums, float32 as they are stored, and counts of files and of what was collected, added up."""
    import numpy as np

    total: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for sums, counts, name in (
        *((sums, counts, name) for matrix in added for name, (sums, counts) in matrix.entries.items()),
        *((found.values, found.counts, name) for name, found in collected.items()),
    ):
        before = total.get(name)
        total[name] = (sums, counts) if before is None else (before[0].astype(np.float64) + sums, before[1] + counts)
    return {name: (sums.astype(np.float32), counts) for name, (sums, counts) in total.items()}


def coverage_of(merged: "dict[str, tuple[np.ndarray, np.ndarray]]", collected: "dict[str, Sums]") -> tuple[Layer, ...]:
    """Return the tokens of each expert by layer, from the matrices of all experts of a layer."""
    from ..models.tensor_roles import layer_of

    layers: dict[int, Layer] = {}
    for name, (_, counts) in merged.items():
        layer = layer_of(name)
        if layer is not None and "_exps." in name:
            found = collected.get(name)
            apart = tuple(found.apart.tolist()) if found else (0,) * len(counts)
            layers[layer] = Layer(layer, tuple(counts.tolist()), apart)
    return tuple(layers[layer] for layer in sorted(layers))


def statistics(path: Path) -> str:
    """Return llama-imatrix's table of a file. Raises ImatrixError for what is no importance matrix."""
    from ..formats.imatrix_file import read_gguf_imatrix
    from ..measure.importance_statistics import statistics_table

    return statistics_table(str(path), read_gguf_imatrix(path).entries)
