"""`moe-gguf sensitivity` on a tiny mixture: every role and layer is measured, and quantize takes what is written."""

import json
from pathlib import Path

import pytest
from moe_gguf.jobs import sensitivity as job
from moe_gguf.jobs.listener import Silent
from moe_gguf.jobs.loading import LoadRequest

from ..command import moe_gguf

TEXT = Path(__file__).parents[1] / "cli" / "texts" / "manual.txt"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:900], encoding="utf-8")
    return path


def test_roles_and_layers_are_measured_and_the_file_makes_a_mix(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    found = tmp_path / "s.json"
    asked = (
        "sensitivity",
        tiny_path,
        "-f",
        text,
        "-o",
        found,
        "-c",
        "64",
        "--chunks",
        "2",
        "--groups",
        "2",
        "-q",
        "-t",
        "1",
    )
    done = moe_gguf(*asked, "--json")
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads(found.read_text()) == report
    assert {"ATTN_V", "FFN_DOWN", "TOKEN_EMBD"} <= set(report["roles"])
    assert all(set(row) == {"symmetric", "asymmetric"} for row in report["roles"].values())
    assert report["errors"]["blk.0.attn_v.weight"]["Q4_0"] > report["errors"]["blk.0.attn_v.weight"]["Q8_0"] > 0
    assert set(report["layers"]) == {"0", "1"} and report["rounding"] == "plain"
    again = moe_gguf(*asked)
    assert again.status == 1 and "exists already" in again.stderr
    mix = ("quantize", tiny_path, "--target-bpw", "9", "--sensitivity", found, "--dry-run", "--json")
    assert json.loads(moe_gguf(*mix).stdout)["outputs"][0]["budget"]["mix"]


class Impatient(Silent):
    """Presses Ctrl-C after so many measurements."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)

    def detail(self, message: str) -> None:
        self.patience -= message.endswith(" nats")
        if not self.patience:
            raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_and_ends_alike(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    def asked(name: str) -> job.Request:
        return job.Request(
            tiny_path, text, tmp_path / name, n_chunk=2, n_group=1, n_ctx=32, load=LoadRequest(n_threads=1)
        )

    with pytest.raises(KeyboardInterrupt):
        job.run(job.prepare(asked("a.json")), Impatient(5))
    assert not (tmp_path / "a.json").exists()
    again = Impatient(-1)
    job.run(job.prepare(asked("a.json")), again)
    assert any("5 of " in said and "are there" in said for said in again.said)
    job.run(job.prepare(asked("b.json")))
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == ["a.json", "b.json"]
