"""What perplexity and compare share: how a model is loaded to be measured, and what stops it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..formats.errors import Interrupted
from .loading import LoadRequest

N_BATCH = 2048


def measuring(load: LoadRequest, n_ctx: int) -> LoadRequest:
    """Return how llama.cpp's measuring tools load a model: as many windows of n_ctx tokens at once as a batch takes.

    Their digits are only reached with the CPU's repacked weights, which change the order of sums.
    """
    n_batch = load.n_batch or N_BATCH
    n_seq = max(1, n_batch // n_ctx)
    return replace(
        load,
        n_ctx=n_seq * n_ctx,
        n_batch=min(n_batch, n_seq * n_ctx),
        n_seq_max=n_seq,
        kv_unified=False,
        repack=True if load.repack is None else load.repack,
    )


@contextmanager
def going_on(how: str = "nothing was kept") -> Iterator[None]:
    """Turn a cancelled computation and Ctrl-C into one line that says what is left of the work."""
    from ..runner.engine import Cancelled

    try:
        yield
    except (Cancelled, KeyboardInterrupt):
        raise Interrupted(f"interrupted; {how}") from None
