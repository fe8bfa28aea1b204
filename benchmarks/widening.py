"""The same mixture with wider rows: 576 columns become 768, which K-quants can cut into blocks of 256.

SmolLM2-135M has n_embd 576, 9 heads and 3 KV heads of 64. Norm gains are folded into the matrices behind them, the
residual stream is rotated into 768 dimensions by an orthonormal 768 x 576 matrix Q (what a norm then divides by is
sqrt(576 / 768) of what it was, eps times 0.75), and three heads and one KV head of zeros are added. The function is
that of the narrow model but for BF16's rounding. Its inputs have rank 576 of 768, which flatters every method that
looks at their correlations: quote the narrow model first.
"""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from moe_gguf.formats.floats import to_bf16, widen
from moe_gguf.formats.gguf_file import GgufFile, read_gguf

NARROW, WIDE, HEAD, HEADS, KV_HEADS = 576, 768, 64, 12, 4
SCALE = (NARROW / WIDE) ** 0.5
COPIED = ("tokenizer.", "general.")


def widened(source: Path, target: Path) -> None:
    """Write the wide twin of a BF16 GGUF file of SmolLM2-135M, or of a mixture of such."""
    file = read_gguf(source)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDE, NARROW)))[0].astype(np.float32)
    writer = gguf.GGUFWriter(target, file.architecture)
    reader = gguf.GGUFReader(source)
    for key, field in reader.fields.items():
        if key == "general.architecture" or key.startswith("GGUF."):
            continue
        value, kind = _changed(key, field.contents()), field.types
        writer.add_key_value(key, value, kind[0], kind[-1] if kind[0] == gguf.GGUFValueType.ARRAY else None)
    for name, values in _tensors(file, rotation).items():
        is_exact = name.endswith(("_norm.weight", "ffn_gate_inp.weight"))
        stored = values.astype(np.float32) if is_exact else to_bf16(values.astype(np.float32)).view(np.uint8)
        writer.add_tensor(name, stored, raw_dtype=None if is_exact else gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _changed(key: str, value: object) -> object:
    name = key.partition(".")[2]
    changed = {"embedding_length": WIDE, "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}
    if name == "attention.layer_norm_rms_epsilon":
        assert isinstance(value, float)
        return value * NARROW / WIDE
    return changed.get(name, value)


def _tensors(file: GgufFile, rotation: np.ndarray) -> dict[str, np.ndarray]:
    """Return all tensors of the wide model, rows last but one."""
    taken = {name: _read(file, name) for name in file.tensors}
    gains = {name.removesuffix("_norm.weight"): values for name, values in taken.items() if "_norm." in name}

    def behind_norm(values: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return (values * gain) @ rotation.T * SCALE

    wide: dict[str, np.ndarray] = {}
    for name, values in taken.items():
        layer, _, role = name.removesuffix(".weight").rpartition(".")
        if name.endswith("_norm.weight"):
            wide[name] = np.ones(WIDE, np.float32)
        elif role in ("attn_q", "attn_k", "attn_v"):
            n_rows = HEAD * (HEADS if role == "attn_q" else KV_HEADS)
            wide[name] = _padded(behind_norm(values, gains[f"{layer}.attn"]), n_rows, 0)
        elif role == "attn_output":
            wide[name] = rotation @ _padded(values, HEAD * HEADS, 1)
        elif role == "ffn_down" or role == "ffn_down_exps":
            wide[name] = rotation @ values
        elif role.startswith("ffn_"):
            wide[name] = behind_norm(values, gains[f"{layer}.ffn"])
    wide["token_embd.weight"] = taken["token_embd.weight"] @ rotation.T
    head = taken.get("output.weight", taken["token_embd.weight"])
    wide["output.weight"] = behind_norm(head, gains["output"])
    return wide


def _padded(values: np.ndarray, n: int, axis: int) -> np.ndarray:
    missing = [(0, n - size if at == axis else 0) for at, size in enumerate(values.shape)]
    return np.pad(values, missing)


def _read(file: GgufFile, name: str) -> np.ndarray:
    tensor = file.tensors[name]
    kinds: dict[gguf.GGMLQuantizationType, Callable[[np.ndarray], np.ndarray]] = {
        gguf.GGMLQuantizationType.F32: lambda data: data.view("<f4"),
        gguf.GGMLQuantizationType.BF16: lambda data: widen(data.view("<u2")),
    }
    data = np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)
    return kinds[tensor.qtype](data).reshape(tensor.shape[::-1])
