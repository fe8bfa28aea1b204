"""Which experts each token went to, heard while any batch is computed; and tokens sent to one expert alone.

The callback that llama.cpp asks about every node of its graph is machine code, compiled by Numba: while nobody asks, a
token costs a few microseconds more. `Tap` of tap.py hears more, and costs Python for every node.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import routing_state as at
from .tap import functions


@dataclass(frozen=True)
class Routing:
    """Where one token went: experts int32 [n_layer, n_expert_used], -1 in layers without experts, and their weights.

    A layer's weights add up to 1.
    """

    experts: np.ndarray
    weights: np.ndarray

    def shares(self) -> list[tuple[int, float]]:
        """Return experts with their share of all layers' weights, the largest first; the shares add up to 1."""
        there = self.experts[:, 0] >= 0
        total = np.bincount(self.experts[there].ravel(), self.weights[there].ravel()) / max(np.count_nonzero(there), 1)
        return sorted(((int(e), float(total[e])) for e in np.flatnonzero(total)), key=lambda pair: -pair[1])


class RoutingTap:
    """Hears routers of one engine; give `on_eval` to it. Silent until `listen`, for the batch that comes next."""

    def __init__(self, n_layer: int, n_expert: int, n_expert_used: int) -> None:
        """Make the callback; `measure` must follow before anything is decoded."""
        self._shape = n_layer, n_expert_used
        self._scratch = np.zeros(n_expert, np.float32)
        self._state = state = np.zeros(at.FIELDS, np.int64)
        state[[at.N_LAYER, at.N_EXPERT, at.N_USED]] = n_layer, n_expert, n_expert_used
        for field, function in (
            (at.GET, functions().ggml_backend_tensor_get),
            (at.SET, functions().ggml_backend_tensor_set),
        ):
            state[field] = ctypes.cast(function, ctypes.c_void_p).value or 0
        from .routing_callback import callback

        self.on_eval = (callback.address, state.ctypes.data)
        self.measure(1, 1)

    def measure(self, n_batch: int, n_ubatch: int) -> None:
        """Make room for batches of at most n_batch tokens, computed n_ubatch at a time."""
        n_layer, n_used = self._shape
        self._chosen = np.full((n_layer, n_batch, n_used), -1, np.int32)
        self._weights = np.zeros((n_layer, n_batch, n_used), np.float32)
        self._wanted = np.zeros(n_batch, np.int8)
        self._forced = np.full(n_batch, -1, np.int32)
        self._outputs = np.zeros(n_batch, np.int32)
        for field, array in (
            *(
                (at.CHOSEN, self._chosen),
                (at.WEIGHTS, self._weights),
                (at.WANTED, self._wanted),
                (at.FORCED, self._forced),
            ),
            *((at.OUTPUTS, self._outputs), (at.SCRATCH, self._scratch)),
        ):
            self._state[field] = array.ctypes.data
        self._state[[at.N_BATCH, at.N_UBATCH]] = n_batch, n_ubatch

    def listen(
        self,
        n_tokens: int,
        outputs: Sequence[int],
        wanted: Sequence[int] = (),
        forced: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Hear the next batch of n_tokens, whose logits are wanted at the rows `outputs`, ascending.

        The routes of the rows `wanted` are kept; rows start to stop of each (start, stop, expert) go to that expert.
        """
        state = self._state
        self._wanted[:n_tokens] = 0
        self._wanted[list(wanted)] = 1
        self._chosen[:, list(wanted)] = -1
        self._forced[:n_tokens] = -1
        for start, stop, expert in forced:
            self._forced[start:stop] = expert
        self._outputs[: len(outputs)] = outputs
        state[at.N_TOKENS], state[at.N_OUTPUTS] = n_tokens, len(outputs)
        state[at.LATEST : at.LATEST + 3], state[at.LATEST + 3 : at.LATEST + 6] = -1, 0
        state[at.LISTENS], state[at.REROUTES] = bool(wanted), bool(forced)

    def rest(self) -> None:
        """Hear no more."""
        self._state[[at.LISTENS, at.REROUTES]] = 0

    def routing(self, row: int) -> Routing:
        """Return where the token at a row of the last batch went, if it was wanted."""
        weights = self._weights[:, row].copy()
        total = weights.sum(axis=1, keepdims=True)
        return Routing(self._chosen[:, row].copy(), weights / np.where(total > 0, total, 1))
