"""What routers are worth: held-out losses of a recipe's base, of each expert alone, and of the mixture.

    python -m benchmarks.calibration RECIPE NAME=FILE... [--tokens N] [--held-out N]

One text per expert, in the recipe's order: the first tokens of each fit the routers, the last ones are held out. The
recipe's own gates are those of its gate_mode (`hidden` from its prompts); `calibrated` are the router of a multinomial
logistic regression on what the layers see, one round on the base and one on the mixture. Every GGUF is BF16 and lies in
moe-gguf's cache.

docs/merge.md has the table of SmolLM2-135M-Instruct with the four adapters of merge/experts.

What was learnt:
- The regression names the right expert for 99 % of the tokens it is fitted to, in every layer; how sure it is should
  not be left to it: a quarter of its scores loses least, because a second expert's part helps on most texts.
- The second round, on the mixture's own states, changes little (0.001 nats).
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from moe_gguf.cli.calibration import Text, choose_sharpness, fit_gates, held_out_losses, split_texts
from moe_gguf.cli.gates import cached_gguf, compute_gates
from moe_gguf.formats.gguf_file import read_gguf
from moe_gguf.merge.calibrate import RIDGE
from moe_gguf.merge.gates import Gates
from moe_gguf.merge.models import open_models
from moe_gguf.merge.open import Models, open_recipe, sizes_of
from moe_gguf.merge.prompts import prompt_tokenizer
from moe_gguf.merge.recipe import Recipe, read_recipe
from moe_gguf.merge.regate import regate


def alone(recipe: Recipe, models: Models, index: int) -> Path:
    """Return a GGUF with one of the recipe's experts alone."""
    expert = recipe.experts[index]
    single = replace(recipe, name=expert.name, experts=(expert,), experts_per_token=1, gate_mode="random")
    return cached_gguf(open_recipe(single, models=models), "bf16")


def show(name: str, losses: dict[str, float]) -> None:
    """Print a row of the table: each text's loss and the mean."""
    columns = " ".join(f"{loss:9.3f}" for loss in losses.values())
    print(f"{name:<24} {columns} {sum(losses.values()) / len(losses):9.3f}", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("texts", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--tokens", type=int, default=2560)
    parser.add_argument("--held-out", type=int, default=2048)
    parser.add_argument("--ctx-size", type=int, default=512)
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    models = open_models(recipe)
    base = models[recipe.base_model].checkpoint
    named = [argument.partition("=") for argument in options.texts]
    contents = [(name, i, Path(path).read_text(encoding="utf-8")) for i, (name, _, path) in enumerate(named)]
    texts = split_texts(contents, prompt_tokenizer(base.folder), options.tokens, options.held_out)
    sizes = sizes_of(recipe, models)
    shape = (sizes.n_layer, len(recipe.experts), sizes.n_embd)

    def judge(gguf: Path) -> dict[str, float]:
        return held_out_losses(gguf, texts, options.ctx_size)

    print(f"{'':<24} " + " ".join(f"{text.name:>9}" for text in texts) + f" {'mean':>9}")
    show("base", judge(cached_gguf(base, "bf16")))
    singles = [judge(alone(recipe, models, index)) for index in range(len(recipe.experts))]
    for expert, losses in zip(recipe.experts, singles, strict=True):
        show(f"{expert.name} alone", losses)
    show("the right one alone", {text.name: singles[text.expert][text.name] for text in texts})
    show(
        recipe.gate_mode, judge(cached_gguf(open_recipe(recipe, compute_gates(recipe, models), models=models), "bf16"))
    )
    gguf, seconds = cached_gguf(base, "bf16"), 0.0
    for number in (1, 2):
        started = time.monotonic()
        gates, _ = fit_gates(gguf, texts, shape, options.ctx_size, RIDGE)
        seconds += time.monotonic() - started
        gguf = cached_gguf(open_recipe(recipe, gates, models=models), "bf16")
        show(f"calibrated, round {number}", judge(gguf))
        print(f"  {seconds:.0f} s of reading and fitting {fitted(texts)} tokens until here")
    with TemporaryDirectory(dir=gguf.parent) as folder:
        sharpness = choose_sharpness(read_gguf(gguf), gates, texts, options.ctx_size, Path(folder))
        sharpened = Gates(np.float32(sharpness) * gates.routers, gates.shared)
        (tried,) = regate(read_gguf(gguf), sharpened, Path(folder) / "sharpened.gguf")
        show(f"scores times {sharpness}", judge(tried))


def fitted(texts: list[Text]) -> int:
    """Return how many tokens routers are fitted to."""
    return sum(len(text.fit) for text in texts)


if __name__ == "__main__":
    main()
