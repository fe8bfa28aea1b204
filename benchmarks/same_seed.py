"""How often the same seed gives the same answer to the same conversation, whatever the cache held before.

`python -m benchmarks.same_seed MODEL.gguf`: conversations of four turns; the last answer is made again from an empty
cache. The cache is reused as far as it goes, as llama.cpp's programs do, or as `chat --exact` does.
"""

import sys
from pathlib import Path

from moe_gguf.runner.engine import Engine
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model
from moe_gguf.runner.sampling import SamplingOptions
from moe_gguf.runner.session import Session

QUESTIONS = ("What is the capital of France?", "Write one sentence about cats.", "Name three rivers.", "Tell a joke.")
OPTIONS = LoadOptions(n_ctx=2048, n_threads=2, n_gpu_layers=0)
SEEDS = range(4)


def is_repeated(engine: Engine, seed: int, exact: bool) -> bool:
    """Tell whether the last of four answers is the same from an empty cache."""
    sampling = SamplingOptions(seed=seed, temp=0.8)
    session = Session(engine, sampling, n_predict=40, exact=exact)
    for question in QUESTIONS:
        list(session.ask(question))
    engine.forget(0)
    again = Session(engine, sampling, n_predict=40, messages=session.messages[:-1])
    return "".join(piece.text for piece in again.answer()) == session.messages[-1].text


def main(path: str) -> None:
    """Print how many of the answers are the same."""
    with Model(Path(path), OPTIONS) as model, Engine(model, OPTIONS) as engine:
        for exact, name in ((False, "all of the cache reused"), (True, "--exact")):
            same = sum(is_repeated(engine, seed, exact) for seed in SEEDS)
            print(f"{name:24} {same} of {len(SEEDS)} answers are the same", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
