"""What PyTorch writes into .bin files, and what llama.cpp's converter makes of quantized checkpoints.

    python -m tests.oracles.stored_weights llama_cpp_python-0.3.36/vendor/llama.cpp

Writes tests/formats/golden/: torch_*.bin with the values of torch.safetensors, and quantized.safetensors, which holds
`CASE/in/NAME` as stored and `CASE/out/NAME` as dequant_model reads it; the cases' configs are its metadata.
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

GOLDEN = Path(__file__).parents[1] / "formats" / "golden"
CONFIGS = {
    "fp8_blocks": {"quant_method": "fp8", "weight_block_size": [4, 6]},
    "fp8_tensor": {"quant_method": "fp8"},
    "gptq2": {"quant_method": "gptq", "bits": 2},
    "gptq4": {"quant_method": "gptq", "bits": 4},
    "gptq8": {"quant_method": "gptq", "bits": 8},
    "gptq4_v2": {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
    "channels": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"strategy": "channel", "num_bits": 8, "type": "float"}}},
    },
    "packed": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"weights": {"strategy": "group", "num_bits": 4, "group_size": 8, "type": "int"}}},
    },
}


def quantized_cases() -> dict:
    """Return the stored tensors of every case, drawn with a seed."""
    import torch  # pyright: ignore[reportMissingImports]

    draw = torch.Generator().manual_seed(9)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, generator=draw, dtype=torch.int64).to(torch.int32)

    def scales(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return (torch.rand(shape, generator=draw) / 8 + 0.01).to(dtype)

    def codes(*shape: int, dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8).view(dtype)

    def gptq(bits: int) -> dict:
        n_in, n_out, n_group, pack = 64, 32, 4, 32 // bits
        return {
            "a.qweight": words(n_in // pack, n_out),
            "a.qzeros": words(n_group, n_out // pack),
            "a.scales": scales(n_group, n_out, dtype=torch.float16),
            "a.g_idx": torch.randint(0, n_group, (n_in,), generator=draw).to(torch.int32),
        }

    every = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    return {
        "fp8_blocks": {
            "a.weight": codes(10, 15),
            "a.weight_scale_inv": scales(3, 3),
            "experts.up_proj": codes(2, 5, 12),
            "experts.up_proj_scale_inv": scales(2, 2, 2, dtype=torch.bfloat16),
            "a.activation_scale": scales(1),
        },
        "fp8_tensor": {
            "a.weight": every.view(torch.float8_e4m3fn),
            "a.weight_scale_inv": scales(),
            "b.weight": every.clone().view(torch.float8_e5m2),
            "b.weight_scale_inv": scales(1),
        },
        "gptq2": gptq(2),
        "gptq4": gptq(4),
        "gptq8": gptq(8),
        "gptq4_v2": gptq(4),
        "channels": {"a.weight": codes(6, 10), "a.weight_scale": scales(6, 1, dtype=torch.bfloat16)},
        "packed": {
            "a.weight_packed": words(12, 3),
            "a.weight_scale": scales(12, 3, dtype=torch.bfloat16),
            "a.weight_shape": torch.tensor([12, 24]),
            "b.weight_packed": words(12, 3),
            "b.weight_scale": scales(12, 3),
            "b.weight_shape": torch.tensor([12, 24]),
            "b.weight_zero_point": words(2, 3),
        },
    }


def write_quantized(llama_cpp: Path) -> None:
    """Let llama.cpp's converter dequantize every case."""
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file

    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    from conversion.base import ModelBase  # pyright: ignore[reportMissingImports]

    tensors: dict[str, torch.Tensor] = {}
    for case, stored in quantized_cases().items():
        tensors |= {f"{case}/in/{name}": tensor for name, tensor in stored.items()}
        model = SimpleNamespace(
            _is_nvfp4=False,
            _fp8_as_q8=False,
            lazy=False,
            hparams={"quantization_config": CONFIGS[case]},
            model_tensors={name: lambda tensor=tensor: tensor for name, tensor in stored.items()},
        )
        ModelBase.dequant_model(model)  # type: ignore[arg-type]
        for name, read in model.model_tensors.items():
            tensors[f"{case}/out/{name}"] = read().contiguous()
    save_file(tensors, GOLDEN / "quantized.safetensors", {"configs": json.dumps(CONFIGS)})


def write_torch_files() -> None:
    """Let PyTorch write a dict of tensors in each of its formats."""
    import torch  # pyright: ignore[reportMissingImports]
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(4)
    whole = torch.randn(12, 5, generator=draw)
    tensors = {
        "f32": whole[2:7],
        "tied": whole,
        "f16": torch.randn(3, 4, generator=draw).half(),
        "bf16": torch.randn(2, 3, 4, generator=draw).bfloat16(),
        "f64": torch.randn(4, generator=draw).double(),
        "i64": torch.arange(6).reshape(2, 3),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "fp8": torch.randn(4, 4, generator=draw).to(torch.float8_e4m3fn),
    }
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, GOLDEN / "torch.safetensors")
    torch.save(tensors, GOLDEN / "torch_zip.bin")
    parameters = {name: torch.nn.Parameter(tensors[name]) for name in ("f32", "f16", "bf16", "f64", "scalar")}
    torch.save(parameters, GOLDEN / "torch_parameters.bin")
    module = torch.nn.Linear(4, 3)
    module.load_state_dict({"weight": tensors["f16"].float(), "bias": torch.ones(3)})
    torch.save(module.state_dict(), GOLDEN / "torch_state_dict.bin")
    torch.save(tensors, GOLDEN / "torch_protocol4.bin", pickle_protocol=4)
    old = {"f32": tensors["f32"]}
    torch.save(old, GOLDEN / "torch_old.bin", _use_new_zipfile_serialization=False)
    torch.save({"t": whole.T}, GOLDEN / "torch_transposed.bin")
    torch.save({"model": tensors, "epoch": 3}, GOLDEN / "torch_training.bin")
    torch.save(module, GOLDEN / "torch_module.bin")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    write_torch_files()
    write_quantized(Path(sys.argv[1]))
