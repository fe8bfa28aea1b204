"""From dense models to Q4_K_M: straight from the recipe, from the merge of it, and the way without moe-gguf.

    python -m benchmarks.recipe [--folder DIR] [--layers N] [--threads N]
        [--stock-converter convert_hf_to_gguf.py --stock-python PYTHON]

Four random dense models of Mistral-7B's widths (n_embd 4096, n_ff 14336, 49,152 tokens, BF16) and a recipe with a
random router; a second recipe has four LoRA adapters (rank 16) over one base. `recipe` quantizes the recipe as it is,
`merged` the checkpoint that `moe-gguf merge` writes of it; both begin with files that are not in the page cache. The
stock way is mergekit-moe, llama.cpp's converter (of our classic merge: it cannot read mergekit's fused one) and
llama.cpp's quantizer; it needs a Python with mergekit, torch and transformers.

What was learnt:
- Rows that need no change are handed on as they are read, so a recipe costs what its merge costs to quantize.
- OpenBLAS's own threads must stay out of it: slabs are spread over threads already. With products small enough for
  the calling thread alone, the LoRA recipe took 6 s instead of 20 to 40.
- Folding LoRA in is one matrix product with a thin matrix per slab; its factors are read again for each slab, from the
  page cache, so that no more than a slab is ever held.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from moe_gguf.formats.floats import to_bf16
from moe_gguf.formats.safetensors import pack_header
from moe_gguf.formats.source import TensorInfo

from .processes import Cost, forget, moe_gguf, run
from .quantize import STOCK
from .shapes import CHUNK, config, tensors, write_tokenizer

N_EXPERT, RANK = 4, 16
MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
MERGEKIT = "from mergekit.scripts.moe import main; main()"


def write_dense(folder: Path, n_layer: int, seed: int) -> Path:
    """Write a random dense Mistral unless it is there."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(n_layer, 1)
    infos = []
    for info in tensors(settings):
        name = info.name
        for part, dense in MLP.items():
            name = name.replace(f"block_sparse_moe.experts.0.{part}.", f"mlp.{dense}.")
        if "block_sparse_moe.gate" not in name:
            infos.append(TensorInfo(name, info.dtype, info.shape, ""))
    write_random(folder / "model.safetensors", infos, seed)
    write_tokenizer(folder)
    settings |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    for key in ("num_local_experts", "num_experts_per_tok"):
        del settings[key]
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    return folder


def write_lora(folder: Path, n_layer: int, seed: int) -> Path:
    """Write a random adapter for such a model unless it is there."""
    if (folder / "adapter_config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    infos = []
    for layer in range(n_layer):
        for part, rows, columns in (("gate", 14336, 4096), ("up", 14336, 4096), ("down", 4096, 14336)):
            module = f"base_model.model.model.layers.{layer}.mlp.{part}_proj"
            infos.append(TensorInfo(f"{module}.lora_A.weight", "BF16", (RANK, columns), ""))
            infos.append(TensorInfo(f"{module}.lora_B.weight", "BF16", (rows, RANK), ""))
    write_random(folder / "adapter_model.safetensors", infos, seed)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "target_modules": list(MLP.values())}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def write_random(path: Path, infos: list[TensorInfo], seed: int) -> None:
    """Write random BF16 tensors; norms are around one."""
    random = np.random.default_rng(seed)
    with open(path, "wb") as file:
        file.write(pack_header(infos))
        for info in infos:
            left = info.n_rows * info.row_length
            while left:
                count = min(CHUNK, left)
                values = random.standard_normal(count, np.float32) * np.float32(0.02)
                file.write(to_bf16(values + 1 if len(info.shape) == 1 else values).data)
                left -= count


def write_recipe(path: Path, base: Path, experts: list[str]) -> Path:
    """Write a recipe with a random router."""
    recipe = {"base_model": str(base), "gate_mode": "random", "dtype": "bfloat16"}
    path.write_text(json.dumps({**recipe, "experts": [{"source_model": expert} for expert in experts]}))
    return path


def ours(source: Path, options: argparse.Namespace, inputs: list[Path]) -> Cost:
    """Quantize a recipe or a checkpoint to Q4_K_M, from cold files."""
    out = options.folder / "out.gguf"
    forget(*inputs)
    arguments = ["quantize", source, "--type", "Q4_K_M", "-o", out, "--force", "-t", str(options.threads)]
    cost = run(moe_gguf(*arguments), options.folder)
    out.unlink()
    return cost


def stock(recipe: Path, merged: Path, inputs: list[Path], options: argparse.Namespace) -> Cost:
    """Merge with mergekit, convert and quantize with llama.cpp."""
    out, bf16, last = (options.folder / name for name in ("stock", "stock.gguf", "stock-q4.gguf"))
    forget(*inputs)
    cost = run([options.stock_python, "-c", MERGEKIT, recipe, out], options.folder)
    forget(merged)
    command = [options.stock_python, options.stock_converter, merged, "--outfile", bf16, "--outtype", "bf16"]
    cost += run(command, options.folder)
    forget(bf16)
    cost += run([sys.executable, "-c", STOCK, bf16, last, "Q4_K_M", str(options.threads)], options.folder)
    shutil.rmtree(out)
    bf16.unlink()
    last.unlink()
    return cost


def main() -> None:
    """Run all sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/benchmark"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stock-converter", type=Path)
    parser.add_argument("--stock-python", default=sys.executable)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    n_layer = options.layers
    dense = [write_dense(options.folder / f"dense-{n_layer}-{i}", n_layer, i) for i in range(N_EXPERT)]
    loras = [write_lora(options.folder / f"lora-{n_layer}-{i}", n_layer, 9 + i) for i in range(N_EXPERT)]
    recipe = write_recipe(options.folder / "recipe.yml", dense[0], [str(path) for path in dense])
    with_lora = write_recipe(options.folder / "lora.yml", dense[0], [f"{dense[0]}+{path}" for path in loras])
    merged = options.folder / "merged"
    shutil.rmtree(merged, ignore_errors=True)
    forget(*dense)
    costs = {"merge alone": run(moe_gguf("merge", recipe, "-o", merged, "-q"), options.folder)}
    costs["merged to Q4_K_M"] = ours(merged, options, [merged])
    costs["recipe to Q4_K_M"] = ours(recipe, options, dense)
    costs["LoRA recipe to Q4_K_M"] = ours(with_lora, options, [*dense, *loras])
    if options.stock_converter:
        costs["mergekit, llama.cpp"] = stock(recipe, merged, dense, options)
    shutil.rmtree(merged)
    print(f"{'':<24} {'wall s':>8} {'cpu s':>8} {'memory MB':>10} {'disk GB':>8}")
    for name, cost in costs.items():
        print(f"{name:<24} {cost.wall:8.1f} {cost.cpu:8.1f} {cost.memory / 1e6:10.0f} {cost.disk / 1e9:8.2f}")
    print(f"recipe / merged: {costs['recipe to Q4_K_M'].wall / costs['merged to Q4_K_M'].wall:.2f} in wall time")
    if options.stock_converter:
        times = costs["mergekit, llama.cpp"].wall / costs["recipe to Q4_K_M"].wall
        print(f"mergekit and llama.cpp / recipe: {times:.1f} in wall time")


if __name__ == "__main__":
    main()
