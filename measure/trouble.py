"""Predictions that are no numbers: where in the text and in the model they begin."""

import numpy as np

from ..formats.errors import EngineError
from ..runner.engine import Engine
from ..runner.load_options import LoadOptions
from ..runner.tap import capture
from .windows import Windows


def demand_finite(engine: Engine, losses: np.ndarray, windows: Windows, chunk: int) -> None:
    """Raise EngineError when losses of a window are not finite, naming the window and the first broken layer."""
    if np.isfinite(losses).all():
        return
    layer = first_broken_layer(engine, windows.fed(chunk).tolist())
    where = "in the output layer" if layer is None else f"in layer {layer}"
    token = int(np.flatnonzero(~np.isfinite(losses))[0]) + windows.first + 1
    raise EngineError(
        f"{engine.model.path}: predictions are NaN or infinite from chunk {chunk}, token {token} on; it begins "
        f"{where}. The weights there are damaged or out of F16's range: convert again, or quantize from BF16"
    )


def first_broken_layer(engine: Engine, tokens: list[int]) -> int | None:
    """Return the first layer whose output is not finite for some of the tokens, None when all are."""
    options = LoadOptions(n_ctx=len(tokens) + 1, n_ubatch=512, n_threads=engine.n_threads)
    found = capture(engine.model, options, tokens, lambda name: name.startswith("l_out-"))
    broken = [int(name.removeprefix("l_out-")) for name, array in found.items() if not np.isfinite(array).all()]
    return min(broken, default=None)
