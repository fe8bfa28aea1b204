"""A source whose tensors have other names here than in their files: the same rows under the names that we know."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .source import TensorInfo, TensorSource


class RenamedSource:
    """A source some of whose tensors have other names here: `names` maps ours to its."""

    def __init__(self, source: TensorSource, names: Mapping[str, str]) -> None:
        self._source, self._names = source, names
        self.tensors: Mapping[str, TensorInfo] = {
            ours: replace(source.tensors[theirs], name=ours) for ours, theirs in names.items()
        }

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of a tensor; see TensorSource."""
        return self._source.read_rows(self._names[name], start, stop)

    def identity(self) -> Mapping[str, str]:
        """Return the identity of the source."""
        return self._source.identity()
