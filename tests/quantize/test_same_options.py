"""Options that llama-quantize has too: whole files equal those that it wrote (golden_cases.SAME_OPTIONS)."""

import hashlib
import json
from pathlib import Path

import pytest
from moe_gguf.formats.errors import PlanError
from moe_gguf.models.tensor_types import read_tensor_type_file

from ..command import moe_gguf
from .golden_cases import SAME_OPTIONS, write_sources

GOLDEN = json.loads((Path(__file__).parent / "golden" / "llama_quantize.json").read_text())


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the command lines name."""
    folder = tmp_path_factory.mktemp("sources")
    write_sources(folder)
    return folder


@pytest.mark.parametrize("name", SAME_OPTIONS)
def test_files_equal_those_of_llama_quantize(name: str, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sources)
    options, file_type = SAME_OPTIONS[name]
    assert moe_gguf("quantize", "f32.gguf", "--type", file_type, "-o", f"{name}.gguf", "-q", *options).status == 0
    assert hashlib.sha256(Path(f"{name}.gguf").read_bytes()).hexdigest() == GOLDEN["outputs"][name]


def test_a_file_of_types_names_the_line_that_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "types.txt"
    path.write_text("attn_v=q8_0\nffn_down=q9_0")
    with pytest.raises(PlanError, match=r"types.txt, line 2: there is no tensor type 'q9_0'; did you mean"):
        read_tensor_type_file(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--include-weights", "ffn"), "add --imatrix"),
        (("--imatrix", "imatrix.gguf", "--include-weights", "a", "--exclude-weights", "b"), "exclude each other"),
    ],
)
def test_choices_that_mean_nothing(
    options: tuple[str, ...], says: str, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sources)
    outcome = moe_gguf("quantize", "f32.gguf", "--type", "Q4_K_M", "-o", "none.gguf", *options)
    assert outcome.status == 1 and says in outcome.stderr


def test_an_unknown_type_is_bad_usage(sources: Path) -> None:
    outcome = moe_gguf("quantize", sources / "f32.gguf", "--type", "Q4_K_Z")
    assert outcome.status == 2 and "Q4_K_M" in outcome.stderr
