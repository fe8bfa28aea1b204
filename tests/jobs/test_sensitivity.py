"""`moe-gguf sensitivity` on a tiny mixture: every role and layer is measured, and quantize takes what is written."""

import json
from pathlib import Path

import pytest

from ..command import moe_gguf

TEXT = Path(__file__).parents[1] / "cli" / "texts" / "manual.txt"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT.read_text(encoding="utf-8")[:900], encoding="utf-8")
    return path


def test_roles_and_layers_are_measured_and_the_file_makes_a_mix(tiny_path: Path, text: Path, tmp_path: Path) -> None:
    found = tmp_path / "s.json"
    asked = ("sensitivity", tiny_path, "-f", text, "-o", found, "-c", "64", "--chunks", "2", "--groups", "2", "-q")
    done = moe_gguf(*asked, "--json")
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)
    assert json.loads(found.read_text()) == report
    assert {"ATTN_V", "FFN_DOWN", "TOKEN_EMBD"} <= set(report["roles"])
    assert set(report["layers"]) == {"0", "1"} and report["per_bit"] > 1
    again = moe_gguf(*asked)
    assert again.status == 1 and "exists already" in again.stderr
    mix = ("quantize", tiny_path, "--target-bpw", "9", "--sensitivity", found, "--dry-run", "--json")
    assert json.loads(moe_gguf(*mix).stdout)["outputs"][0]["budget"]["mix"]
