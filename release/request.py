"""What a release is asked to be: a model, types, texts, and who publishes it."""

from dataclasses import dataclass
from pathlib import Path

from ..jobs.loading import DEFAULT_LOAD, LoadRequest
from ..jobs.opening import DEFAULT_GATES, GateRequest
from .manifest import Machine

TYPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
ROUNDINGS = ("plain", "imatrix", "calibrated")
REFERENCES = ("auto", "16-bit", "q8_0")
SPLIT_MAX_SIZE = 45 * 10**9
CONTEXTS = (4096, 8192, 32768)
GiB = 2**30
# What people have, and what is left of it beside the system, a browser and a screen.
MACHINES = (
    Machine("a laptop with 16 GB", 16 * GiB, 0, 12 * GiB),
    Machine("32 GB and a GPU with 8 GB", 32 * GiB, 8 * GiB, 28 * GiB, 7 * GiB),
    Machine("32 GB and a GPU with 24 GB", 32 * GiB, 24 * GiB, 28 * GiB, 23 * GiB),
)


@dataclass(frozen=True)
class Text:
    """A text file and what the card calls it."""

    name: str
    path: Path


@dataclass(frozen=True)
class Publisher:
    """Who publishes what: names of the card's front matter, and the pages that it links."""

    quantized_by: str | None = None
    base_models: tuple[str, ...] = ()
    base_model_relation: str | None = None
    banner: Path | None = None
    card_template: Path | None = None
    repo: str | None = None


@dataclass(frozen=True)
class Request:
    """A model (GGUF file, checkpoint, recipe or name of `catalogue`), and what its release folder is to hold.

    - output: the folder; None is NAME-GGUF here. What is kept between runs lies beside it, in OUTPUT.work.
    - texts: held-out texts that are measured on, at most `n_chunk` windows of `n_ctx` tokens of each; none measures
      nothing.
    - rounding: "plain", "imatrix" or "calibrated", by `calibration` texts (none is the text that ships), or by a file
      of an earlier run (`imatrix`, `moments`).
    - reference: what all is compared with: "16-bit", "q8_0", or "auto", the former where it fits this machine's memory.
    - evaluations: what `eval --json` printed of files of this release.
    - against: other publishers' files of the same model, measured too.
    - speed: False leaves out what a stopwatch finds, and with it the only thing that differs between two runs.
    """

    model: str | Path | None
    types: tuple[str, ...] = TYPES
    catalogue: Path | None = None
    output: Path | None = None
    texts: tuple[Text, ...] = ()
    n_ctx: int = 512
    n_chunk: int | None = None
    rounding: str = "plain"
    calibration: tuple[Text, ...] = ()
    calibration_chunks: int | None = None
    imatrix: Path | None = None
    moments: Path | None = None
    tensor_types: tuple[str, ...] = ()
    reference: str = "auto"
    against: tuple[Path, ...] = ()
    evaluations: tuple[Path, ...] = ()
    machines: tuple[Machine, ...] = MACHINES
    contexts: tuple[int, ...] = CONTEXTS
    split_max_size: int = SPLIT_MAX_SIZE
    gates: GateRequest = DEFAULT_GATES
    pre_tokenizer: str | None = None
    publisher: Publisher = Publisher()
    speed: bool = True
    force: bool = False
    n_threads: int | None = None
    load: LoadRequest = DEFAULT_LOAD
