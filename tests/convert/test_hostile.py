"""Broken and hostile checkpoints: one line that says what and where, exit status 1, no output, never a traceback."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .. import checkpoints
from ..checkpoints import Tiny, header, write_checkpoint, write_safetensors
from ..command import Outcome, convert
from ..oracles import cases
from .broken_files import BROKEN_FILES
from .broken_models import BROKEN_MODELS, EXPERT
from .damage import SMALL, poisoned, setting

BROKEN = BROKEN_FILES | BROKEN_MODELS
GENERATION = "generation_config.json"


def refused(outcome: Outcome, folder: Path, words: tuple[str, ...] = ()) -> None:
    """Demand a clean refusal: status 1, one line with all the words, and nothing where the output should be."""
    assert outcome.status == 1, (outcome.stdout, outcome.stderr)
    assert outcome.stderr.startswith("moe-gguf: ") and outcome.stderr.count("\n") == 1, outcome.stderr
    assert not list(folder.glob("*.gguf"))
    for word in words:
        assert word.lower() in outcome.stderr.lower(), f"{word!r} is not in: {outcome.stderr}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", SMALL)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints_are_refused_in_one_line(name: str, source: Path, tmp_path: Path) -> None:
    damage, words = BROKEN[name]
    damage(source)
    refused(convert(source, tmp_path / "out.gguf"), tmp_path, words)


@pytest.mark.parametrize("name", BROKEN)
def test_a_dry_run_refuses_them_as_well(name: str, source: Path, tmp_path: Path) -> None:
    damage, _ = BROKEN[name]
    damage(source)
    outcome = convert(source, tmp_path / "out.gguf", "--dry-run")
    if "NaN" in name or "infinity" in name:
        assert outcome.status == 0, outcome.stderr
    else:
        refused(outcome, tmp_path)


def test_nonfinite_weights_pass_when_allowed(source: Path, tmp_path: Path) -> None:
    poisoned(EXPERT.format("w3"), 5, float("nan"))(source)
    outcome = convert(source, tmp_path / "out.gguf", "--allow-nonfinite")
    assert outcome.status == 0, outcome.stderr


def test_rows_of_the_embedding_count_not_the_config(source: Path, tmp_path: Path) -> None:
    setting("vocab_size", 300)(source)
    outcome = convert(source, tmp_path / "out.gguf")
    assert outcome.status == 0, outcome.stderr
    assert "300" in outcome.stderr and "320" in outcome.stderr and outcome.stderr.startswith("warning: ")


def test_an_output_that_exists_stays_unless_forced(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    outcome = convert(source, target)
    assert outcome.status == 1
    assert "out.gguf" in outcome.stderr and "--force" in outcome.stderr and outcome.stderr.count("\n") == 1
    assert target.read_bytes() == b"precious"
    assert convert(source, target, "--force").status == 0
    assert target.read_bytes()[:4] == b"GGUF"


def test_a_failure_with_force_leaves_the_old_output(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    poisoned(EXPERT.format("w3"), 5, float("nan"))(source)
    assert convert(source, target, "--force").status == 1
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_input_is_never_the_output(name: str, source: Path) -> None:
    before = (source / name).read_bytes()
    outcome = convert(source, source / name, "--force")
    assert outcome.status == 1 and name in outcome.stderr and outcome.stderr.count("\n") == 1
    assert (source / name).read_bytes() == before


def test_a_folder_that_is_not_there_is_named(source: Path, tmp_path: Path) -> None:
    outcome = convert(source, tmp_path / "nowhere" / "out.gguf")
    assert outcome.status == 1 and "nowhere" in outcome.stderr and outcome.stderr.count("\n") == 1


def test_a_disk_too_small_is_seen_before_the_first_byte(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(convert(source, tmp_path / "out.gguf"), tmp_path, ("1,000", "free"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


NASTY: list[Any] = [0, 1, -1, 2**31, 2**63, 10**400, 0.5, 1e300, float("inf"), float("nan"), "", "x", "\ud800", [], {}]
JSON = st.recursive(
    st.sampled_from(NASTY) | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


CARD_KEYS = [
    "license",
    "license_name",
    "language",
    "tags",
    "base_model",
    "datasets",
    "name",
    "model_creator",
    "version",
]


@contextmanager
def copy_of_small() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield write_checkpoint(Path(folder) / "source", Tiny(n_layer=1, n_embd=8, n_ff=8, n_vocab=320, n_expert=2))


def survives(source: Path) -> None:
    """Demand that a conversion works, or is refused cleanly."""
    outcome = convert(source, source.parent / "out.gguf")
    if outcome.status:
        refused(outcome, source.parent)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_anywhere_in_the_header(data: st.DataObject) -> None:
    tiny = Tiny(n_layer=1, n_embd=8, n_ff=8, n_vocab=320, n_expert=2)
    with copy_of_small() as source:
        tensors = checkpoints.tensors(tiny)
        head = header(tensors)
        for _ in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from(list(head)))
            key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "", "drop"]))
            if key == "drop":
                head.pop(name)
            elif key and isinstance(head[name], dict):
                numbers = st.lists(st.integers(-1, 2**70) | st.sampled_from([0, 8, 16]), max_size=4)
                head[name][key] = data.draw(JSON | numbers)
            else:
                head[name] = data.draw(JSON)
        write_safetensors(source / "model.safetensors", tensors, head)
        survives(source)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(position=st.floats(0, 1), junk=st.binary(min_size=1, max_size=12), length=st.none() | st.integers(0, 2**64 - 1))
def test_any_bytes_anywhere_in_the_file(position: float, junk: bytes, length: int | None) -> None:
    with copy_of_small() as source:
        path = source / "model.safetensors"
        data = bytearray(path.read_bytes())
        head = 8 + int.from_bytes(data[:8], "little")
        at = 8 + int(position * (head - 8))
        data[at : at + len(junk)] = junk
        if length is not None:
            data[:8] = length.to_bytes(8, "little")
        path.write_bytes(data)
        survives(source)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(file=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", GENERATION]), data=st.data())
def test_any_value_anywhere_in_the_other_files(file: str, data: st.DataObject) -> None:
    with copy_of_small() as source:
        (source / GENERATION).write_text(cases.GENERATION)
        document = json.loads((source / file).read_text())
        if file == "config.json":
            scalings = [None, dict(cases.YARN), dict(cases.LLAMA3), dict(cases.LINEAR)]
            document["rope_scaling"] = data.draw(st.sampled_from(scalings))
        place: Any = document
        key: Any = data.draw(st.sampled_from(sorted(place)))
        while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        place[key] = data.draw(JSON)
        (source / file).write_text(json.dumps(document))
        survives(source)


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(CARD_KEYS), value=JSON)
def test_any_value_in_the_model_card(key: str, value: Any) -> None:
    with copy_of_small() as source:
        (source / "README.md").write_text(f"---\n{key}: {json.dumps(value)}\n---\nA card.\n")
        survives(source)


@settings(max_examples=60, deadline=None)
@given(size=st.floats(0, 1))
def test_any_truncation(size: float) -> None:
    with copy_of_small() as source:
        path = source / "model.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[: min(int(size * len(data)), len(data) - 1)])
        outcome = convert(source, source.parent / "out.gguf")
        refused(outcome, source.parent, ("model.safetensors",))
