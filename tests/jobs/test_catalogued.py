"""The catalogue's words in the metadata, and the file names that come of them."""

from pathlib import Path

import numpy as np
from moe_gguf.formats.gguf_fields import field_of, plain
from moe_gguf.formats.naming import gguf_stem
from moe_gguf.formats.source import TensorInfo
from moe_gguf.jobs.catalogued import state_catalogue
from moe_gguf.models.catalogue import read_catalogue
from moe_gguf.writer.plan import Plan

ROOT = Path(__file__).parent.parent.parent


class NoTensors:
    """A source of nothing."""

    tensors: dict[str, TensorInfo] = {}  # noqa: RUF012

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Refuse: there is nothing."""
        raise KeyError(name)

    def identity(self) -> dict[str, str]:
        """Nothing is read."""
        return {}


def plan(**fields: str) -> Plan:
    """Return a plan with only these general fields."""
    general = {"general.architecture": "llama"} | {f"general.{key}": value for key, value in fields.items()}
    return Plan("llama", {key: field_of(value) for key, value in general.items()}, (), NoTensors())


def test_names_of_the_shipped_catalogue() -> None:
    read = plan(name="Weights", finetune="weights", size_label="4x7.2B")
    assert {
        name: gguf_stem(state_catalogue(read, entry).fields, "Q4_K_M")
        for name, entry in read_catalogue(ROOT / "models.toml").models.items()
    } == {
        "smolbruce-4x135m": "SmolBruce-4x135M-Q4_K_M",
        "burningbruce-005": "BurningBruce-4x7B-005-Q4_K_M",
        "cognitivefusion-4x7b": "CognitiveFusion-4x7B-Q4_K_M",
        "mixtral-8x7b-instruct": "Mixtral-8x7B-Instruct-v0.1-Q4_K_M",
    }


def test_what_the_catalogue_says_is_stated() -> None:
    fusion = read_catalogue(ROOT / "models.toml").models["cognitivefusion-4x7b"]
    fields = plain(state_catalogue(plan(name="Weights", license="other", type="model"), fusion).fields)
    assert fields["general.type"] == "model"
    assert fields["general.license"] == "apache-2.0"
    assert fields["general.languages"] == ["en"]
    assert fields["general.tags"] == ["merge", "moe"]
    assert fields["general.dataset.count"] == 3
    assert fields["general.dataset.2.repo_url"] == "https://huggingface.co/Intel/orca_dpo_pairs"


def test_what_it_does_not_say_stays(tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text('[models.mine]\npath = "w"\n')
    read = plan(name="My model", finetune="chat", license="mit", size_label="4x1B")
    assert state_catalogue(read, read_catalogue(tmp_path / "models.toml").models["mine"]).fields == read.fields
