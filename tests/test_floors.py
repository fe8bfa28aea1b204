"""Who calls whom while a recipe is quantized: no call goes up a floor, but to what was handed down as an argument."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from .checkpoints import Tiny, write_checkpoint
from .command import moe_gguf
from .test_imports import FLOORS, ROOT

LEVEL = {package: number for number, floor in enumerate(reversed(FLOORS)) for package in floor}
# Objects that a lower floor is given and calls: the terminal that listens, sources of rows, encoders, mixes, checks.
HANDED_DOWN = {
    ("cli/terminal.py", "say"),
    ("cli/terminal.py", "detail"),
    ("cli/terminal.py", "warn"),
    ("cli/terminal.py", "bar"),
    ("merge/source.py", "read_rows"),
    ("merge/source.py", "identity"),
    ("quantize/encode.py", "__call__"),
    ("quantize/stock_policy.py", "__call__"),
}


@contextmanager
def watching() -> Iterator[set[tuple[str, str, str]]]:
    """Collect (calling file, called file, called function) of all calls between files of ours, of all threads."""
    seen: set[tuple[str, str, str]] = set()
    files: dict[str, str | None] = {}

    def ours(path: str) -> str | None:
        if path not in files:
            real = Path(path).resolve()
            inside = real.is_relative_to(ROOT) and real.relative_to(ROOT).parts[0] in LEVEL
            files[path] = real.relative_to(ROOT).as_posix() if inside else None
        return files[path]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_back is not None and (called := ours(frame.f_code.co_filename)):
            caller = ours(frame.f_back.f_code.co_filename)
            if caller and caller != called:
                seen.add((caller, called, frame.f_code.co_name))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]


def test_quantizing_a_recipe_calls_down_only(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "other")):
        write_checkpoint(tmp_path / name, Tiny(layout="dense", seed=seed, n_embd=256, n_ff=256, n_head=4))
    Path("pair.yml").write_text(
        "base_model: base\ngate_mode: cheap_embed\nexperts:\n"
        "  - source_model: base\n    positive_prompts: [a]\n"
        "  - source_model: other\n    positive_prompts: [b]\n"
    )
    with watching() as calls:
        outcome = moe_gguf("quantize", "pair.yml", "--type", "Q4_K_M", "-o", "gguf/", "--verify")
    assert outcome.status == 0, outcome.stderr
    floors = {path.split("/")[0] for call in calls for path in call[:2]}
    assert {"cli", "jobs", "convert", "merge", "quantize", "runner", "models", "writer", "formats"} <= floors
    upwards = {
        f"{caller} -> {called}:{function}"
        for caller, called, function in calls
        if LEVEL[called.split("/")[0]] > LEVEL[caller.split("/")[0]]
        and (called, function) not in HANDED_DOWN
        and not function.startswith("<")
    }
    assert not upwards


def test_a_recipe_is_opened_and_planned_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "other")):
        write_checkpoint(tmp_path / name, Tiny(layout="dense", seed=seed, n_embd=256, n_ff=256, n_head=4))
    Path("pair.yml").write_text(
        "base_model: base\ngate_mode: hidden\nexperts:\n"
        "  - source_model: base\n    positive_prompts: [a]\n"
        "  - source_model: other\n    positive_prompts: [b]\n"
    )
    counts: dict[str, int] = {}

    def profile(frame: FrameType, event: str, _: Any) -> None:
        # The doctor arranges models that are open already with the base among the experts, to compare weights.
        asked = event == "call" and frame.f_back and "/jobs/" in frame.f_back.f_code.co_filename
        if asked and frame.f_code.co_name in ("open_models", "open_recipe", "open_mixture", "plan_variants"):
            counts[frame.f_code.co_name] = counts.get(frame.f_code.co_name, 0) + 1

    monkeypatch.setenv("MOE_GGUF_CACHE", str(tmp_path / "cache"))
    sys.setprofile(profile)
    try:
        outcome = moe_gguf("quantize", "pair.yml", "--type", "Q8_0", "--type", "Q4_K_M", "-o", "gguf/")
    finally:
        sys.setprofile(None)
    assert outcome.status == 0, outcome.stderr
    assert counts == {"open_mixture": 1, "open_models": 1, "open_recipe": 1, "plan_variants": 1}
