"""The number of threads: never more than the affinity and the control group allow, never less than one."""

import os
from pathlib import Path

import pytest
from moe_gguf.runner import threads
from moe_gguf.runner.threads import allowed_cpus, best_thread_count


def test_within_what_is_allowed() -> None:
    assert 1 <= best_thread_count() <= len(allowed_cpus())


def test_one_processor_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {min(allowed_cpus())}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: one, raising=False)
    assert allowed_cpus() == one
    assert best_thread_count() == 1


def test_siblings_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cpu, siblings in enumerate(["0,4", "1,5", "2,6", "3,7"] * 2):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(siblings + "\n")
    monkeypatch.setattr(threads, "CPUS", tmp_path)
    monkeypatch.setattr(threads, "PERFORMANCE_CORES", tmp_path / "none")
    assert threads._cores(set(range(8))) == 4
    assert threads._cores({0, 4, 1}) == 2
    (tmp_path / "fast").write_text("0-1,4-5\n")
    monkeypatch.setattr(threads, "PERFORMANCE_CORES", tmp_path / "fast")
    assert threads._cores(set(range(8))) == 2
    assert threads._cores({2, 3, 6}) == 2
