"""A small mixture to release: a recipe of three random experts, and what is asked of a release in the tests."""

import json
from dataclasses import replace
from pathlib import Path

from moe_gguf.jobs.loading import LoadRequest
from moe_gguf.release.release import Report, prepare, run
from moe_gguf.release.request import Request, Text

from ..checkpoints import Tiny, write_checkpoint

TEXTS = Path(__file__).parents[1] / "cli" / "texts"
PROMPTS = {"one": "def main", "two": "the LORD said", "three": "ls - list"}


def write_recipe(folder: Path) -> Path:
    """Write four tiny dense models and a recipe of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("base", *PROMPTS)):
        write_checkpoint(folder / name, Tiny(layout="dense", seed=seed, n_embd=256, n_ff=256, n_head=4))
    experts = [{"source_model": name, "positive_prompts": [prompt]} for name, prompt in PROMPTS.items()]
    recipe = {"base_model": "base", "gate_mode": "cheap_embed", "dtype": "bfloat16", "experts": experts}
    path = folder / "tiny.yml"
    path.write_text(json.dumps(recipe))
    return path


def request_of(model: Path, output: Path) -> Request:
    """Return a request that takes a second or two: two types, an importance matrix, two held-out texts."""
    return Request(
        model,
        types=("Q8_0", "Q4_K_M"),
        output=output,
        texts=(Text("scripture", TEXTS / "scripture.txt"), Text("german", TEXTS / "german.txt")),
        n_ctx=64,
        n_chunk=2,
        rounding="imatrix",
        calibration=(Text("manual", TEXTS / "manual.txt"),),
        calibration_chunks=1,
        contexts=(128, 256),
        speed=False,
        load=LoadRequest(n_threads=1, devices=()),
        n_threads=1,
    )


def released(request: Request, **changes: object) -> Report:
    """Release, with some things asked otherwise."""
    return run(prepare(replace(request, **changes)))  # pyright: ignore[reportArgumentType]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
