"""Two files of one model that differ in types: tensors of one and the other as a third, copied, not rounded again."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.gguf_file import GgufFile, read_gguf
from ..formats.gguf_layout import TensorEntry
from ..formats.source import TensorInfo
from ..writer.gguf_source import GgufSource, plan_from_gguf


class Spliced:
    """A TensorSource: the tensors of one file, but those of `names` from another."""

    def __init__(self, first: GgufFile, other: GgufFile, names: AbstractSet[str]) -> None:
        self._first, self._other, self._names = GgufSource(first), GgufSource(other), names
        self.tensors: Mapping[str, TensorInfo] = {
            name: (self._other if name in names else self._first).tensors[name] for name in first.tensors
        }

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows of a tensor; see TensorSource."""
        return (self._other if name in self._names else self._first).read_rows(name, start, stop)

    def identity(self) -> dict[str, str]:
        """Return what identifies both files, and which tensors are whose."""
        return self._first.identity() | self._other.identity() | {"spliced": ",".join(sorted(self._names))}


def splice(first: Path, other: Path, names: AbstractSet[str], out: Path) -> None:
    """Write `first` with the tensors of `names` as `other` has them; an older `out` is replaced."""
    from ..runner.threads import best_thread_count
    from ..writer.partial import Output
    from ..writer.write import write

    one, two = read_gguf(first), read_gguf(other)
    plan = plan_from_gguf(one)
    types = {name: (two if name in names else one).tensors[name].qtype for name in one.tensors}
    tensors = tuple(replace(t, source_type=types[t.name].name) for t in plan.tensors)
    entries = tuple(TensorEntry(t.name, t.shape, GGMLQuantizationType(types[t.name])) for t in tensors)
    spliced = replace(plan, tensors=tensors, source=Spliced(one, two, names))
    write(spliced, [Output(out, plan.fields, entries)], n_threads=best_thread_count(), force=True)
