"""A GGUF file that asks for another routing than llama.cpp's graph computes comes in; by how much its logits differ
goes out.

Such a file says so itself: `expert_weights_norm` is whether the weights of the chosen experts are to be divided by
their sum, and the graph of its architecture does otherwise. Both ways are computed, the asked one by changing those
weights while the graph runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf.constants import Keys

from ..formats.gguf_file import GgufFile, read_gguf
from ..models.graphs import runs_otherwise
from ..runner.engine import Engine
from ..runner.load_options import LoadOptions
from ..runner.losses import all_logits
from ..runner.model import Model, tokenize
from ..runner.tap import Tap, TappedEngine

# Tensors of build_moe_ffn in src/llama-graph.cpp: the chosen experts' weights, and their sum, which divides them.
WEIGHTS, WEIGHTS_SUM = "ffn_moe_weights-", "ffn_moe_weights_sum_clamped-"
SMALLEST_SUM = np.float32(6.103515625e-5)

OPTIONS = LoadOptions(n_ctx=256, n_batch=256, n_ubatch=64, n_gpu_layers=0, devices=(), repack=False)
N_TOKENS = 128
PROBE_TEXT = """The library was older than the town around it. Its reading room had been a granary, and in dry
summers the oak boards still smelled faintly of wheat. Nobody could say who had first carried books up the narrow
stairs, but by 1840 there were six hundred of them, and a man was paid to keep out the mice.

def mean(values):
    if not values:
        raise ValueError("no values")
    return sum(values) / len(values)

In the second half of the year, exports grew by 4.2 percent, while prices hardly changed. What does that mean for a
family that rents two rooms near the harbour? Write down your answer before you read on.
"""


@dataclass(frozen=True)
class Difference:
    """How logits differ from those that were asked for.

    `rms` is the root mean square of the difference over that of the logits asked for, `kl` the mean Kullback-Leibler
    divergence in nats a token, `same_top` the share of tokens after which the same next one is the likeliest.
    """

    rms: float
    kl: float
    same_top: float


def describe_graph_difference(path: Path) -> str | None:
    """Measure a file and return one line about what llama.cpp does otherwise; None when it does what is asked."""
    file = read_gguf(path)
    asked = asked_otherwise(file)
    if asked is None:
        return None
    with Model(path, OPTIONS) as model:
        difference = measure(model, OPTIONS, tokenize(model, PROBE_TEXT)[:N_TOKENS])
    chosen = f"the {file.hyper(Keys.LLM.EXPERT_USED_COUNT)} of {file.hyper(Keys.LLM.EXPERT_COUNT)} chosen experts"
    does = f"without renormalizing the weights of {chosen}" if asked else f"renormalizing the weights of {chosen}"
    return (
        f"llama.cpp runs this file {does}, other than the checkpoint asks: on a probe text logits differ by "
        f"{100 * difference.rms:.1f} % (KL divergence {difference.kl:.2g} nats a token, "
        f"{100 * difference.same_top:.0f} % same first choice)"
    )


def asked_otherwise(file: GgufFile) -> bool | None:
    """Return whether the file asks for renormalized weights when its graph does otherwise, else None."""
    asked = file.hyper(Keys.LLM.EXPERT_WEIGHTS_NORM)
    n_expert, n_used = file.hyper(Keys.LLM.EXPERT_COUNT), file.hyper(Keys.LLM.EXPERT_USED_COUNT)
    if not (isinstance(asked, bool) and isinstance(n_expert, int) and isinstance(n_used, int)):
        return None
    return asked if runs_otherwise(file.architecture, asked, n_expert, n_used) else None


def measure(model: Model, options: LoadOptions, tokens: Sequence[int]) -> Difference:
    """Decode tokens as llama.cpp does and as the file asks."""
    with Engine(model, options) as engine:
        plain = all_logits(engine, 0, tokens)
    return compare(plain, asked_logits(model, options, tokens))


def asked_logits(model: Model, options: LoadOptions, tokens: Sequence[int]) -> np.ndarray:
    """Return the logits [tokens, n_vocab] that the file asks for, where `asked_otherwise` is not None."""
    asked = asked_otherwise(model.file)
    prefix, change = (WEIGHTS, _renormalized) if asked else (WEIGHTS_SUM, _ones)
    with TappedEngine(model, options, Tap(lambda name: name.startswith(prefix), change)) as engine:
        return all_logits(engine, 0, tokens)


def _renormalized(_: str, weights: np.ndarray) -> np.ndarray:
    """Divide weights [tokens, n_expert_used, 1] by their sum, as build_moe_ffn does."""
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), SMALLEST_SUM)


def _ones(_: str, sums: np.ndarray) -> np.ndarray:
    """Return what leaves weights that are divided by it as they are."""
    return np.ones_like(sums)


def compare(logits: np.ndarray, asked: np.ndarray) -> Difference:
    """Compare logits [tokens, n_vocab] with those asked for."""
    from scipy.special import log_softmax

    squares, kl = np.zeros(2), 0.0
    for ours, theirs in zip(logits, asked, strict=True):
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        squares += np.square(ours - theirs).sum(), np.square(theirs).sum()
        ours, theirs = log_softmax(ours), log_softmax(theirs)
        kl += np.exp(theirs) @ (theirs - ours) / len(logits)
    same = logits.argmax(axis=1) == asked.argmax(axis=1)
    return Difference(float(np.sqrt(squares[0] / squares[1])), float(kl), float(same.mean()))
