"""What idle sequences held, in memory beside the cache: the oldest goes when there is too much.

llama.cpp's attention passes over all cells of a cache that is shared, up to the last one in use, whoever owns them:
2,000 tokens of others cost a token of the demo model 9 % more. So who is idle moves out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..runner.engine import shared_prefix


@dataclass(frozen=True, eq=False)
class Parked:
    """A sequence that moved out: its tokens, `n_units` of which were read in units, the expert it was sent to."""

    tokens: list[int]
    only_expert: int | None
    n_units: int
    state: np.ndarray


class Parking:
    """Room for sequences that are not in the cache."""

    def __init__(self, n_bytes: int) -> None:
        """Hold as much as fits into n_bytes; 0 holds nothing."""
        self.n_bytes = n_bytes
        self._held: list[Parked] = []

    def __iter__(self) -> Iterator[Parked]:
        return iter(self._held)

    def put(self, parked: Parked) -> None:
        """Take a sequence in, instead of any that it goes on from; the oldest go when room is needed.

        One that does not fit alone is not taken in.
        """
        if parked.state.nbytes > self.n_bytes:
            return
        self._held = [each for each in self._held if not goes_on_from(parked, each)]
        self._held.append(parked)
        while sum(each.state.nbytes for each in self._held) > self.n_bytes:
            del self._held[0]

    def take(self, parked: Parked) -> None:
        """Give a sequence away."""
        self._held.remove(parked)

    def clear(self) -> None:
        """Forget all."""
        self._held.clear()


def goes_on_from(later: Parked, earlier: Parked) -> bool:
    """Tell whether a sequence holds all that another one does, of the same worth."""
    n_tokens = len(earlier.tokens)
    return (
        later.only_expert == earlier.only_expert
        and later.n_units >= earlier.n_units
        and shared_prefix(later.tokens, earlier.tokens) == n_tokens
    )
