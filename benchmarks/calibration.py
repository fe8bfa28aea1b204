"""What routers are worth: held-out losses of a recipe's base, of each expert alone, and of the mixture.

    python -m benchmarks.calibration RECIPE NAME=FILE... [--tokens N] [--held-out N]

One text per expert, in the recipe's order: the first tokens of each fit the routers, the last ones are held out.
`moe-gguf demo` writes a recipe, and `python -m benchmarks.texts` four texts. The recipe's own gates are those of its
gate_mode (`hidden` from its prompts); `calibrated` are the routers of a multinomial logistic regression on what the
layers see. Every GGUF is BF16 and lies in moe-gguf's cache.

docs/merge.md has the table of SmolLM2-135M-Instruct with the four adapters of merge/experts.

What was learnt:
- The regression names the right expert for 99 % of the tokens it is fitted to, in every layer.
- One round is enough when each text runs through its own expert meanwhile: the layers then see what they will see. A
  second one, routed by the first's routers, changes 0.0002 nats.
- Less sharpness helps where texts lie between the experts (an eighth was best on mixed pages: 2.636 nats against 2.647
  for the best single expert), none where each text is one expert's own. So tokens that are set aside choose.
- Tokens are fitted to with one expert each and nothing after the last router is computed: half of the work. BLAS must
  not use threads of its own beside llama.cpp's, whose waiting it slows: 8.5 s became 13.
- Other targets were tried on such texts, and none was better than the text's own expert: posteriors of each token's
  losses under each expert (2.527 nats instead of 2.510, they are noise), the same over 129 tokens around (2.390 instead
  of 2.389). Gradients of the loss itself, by a program with automatic differentiation: 2.389 to 2.390, then worse.
"""

import argparse
import time
from pathlib import Path

from moe_gguf.jobs.calibration import choose_sharpness, fit_gates, losses_of, split_texts
from moe_gguf.jobs.gates import compute_gates
from moe_gguf.jobs.working_files import cached_gguf
from moe_gguf.merge.calibrate import RIDGE
from moe_gguf.merge.models import open_models
from moe_gguf.merge.open import open_recipe, sizes_of
from moe_gguf.merge.prompts import prompt_tokenizer
from moe_gguf.merge.recipe import read_recipe
from moe_gguf.runner.load_options import LoadOptions
from moe_gguf.runner.model import Model
from moe_gguf.runner.rerouting import rerouted_losses, to_expert


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

    reading = LoadOptions(n_ctx=options.ctx_size, n_ubatch=512)
    judged = {text.name: text.held_out for text in texts}
    print(f"{'':<24} " + " ".join(f"{text.name:>9}" for text in texts) + f" {'mean':>9}")
    with Model(cached_gguf(base, "bf16"), LoadOptions()) as model:
        show("base", losses_of(model, reading, judged))
    mixture = open_recipe(recipe, compute_gates(recipe, models), models=models)
    gguf = cached_gguf(mixture, "bf16")
    with Model(gguf, LoadOptions()) as model:
        singles: list[dict[str, float]] = []
        for index, expert in enumerate(recipe.experts):
            route = to_expert(index, len(recipe.experts))
            singles.append(
                {name: float(rerouted_losses(model, reading, tokens, route).mean()) for name, tokens in judged.items()}
            )
            show(f"{expert.name} alone", singles[-1])
        show("the right one alone", {text.name: singles[text.expert][text.name] for text in texts})
        show(recipe.gate_mode, losses_of(model, reading, judged))
        started = time.monotonic()
        routers, _ = fit_gates(gguf, texts, shape, options.ctx_size, RIDGE)
        fitted = time.monotonic()
        sharpness = choose_sharpness(model, reading, routers, texts)
        chosen = time.monotonic()
        show("calibrated", losses_of(model, reading, judged, routers, sharpness))
    print(
        f"{fitted - started:.0f} s to read {sum(len(text.fit) for text in texts):,} tokens and to fit, "
        f"{chosen - fitted:.0f} s to choose the sharpness {sharpness}"
    )


if __name__ == "__main__":
    main()
