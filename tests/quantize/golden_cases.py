"""What llama.cpp's llama-quantize was asked for the golden file: its options, on the tiny files of `tiny_files`."""

from dataclasses import dataclass, field
from pathlib import Path

from .tiny_files import write_tiny, write_tiny_imatrices


@dataclass(frozen=True)
class GoldenCase:
    """One run: the source's type, the file type, and options by their names in llama-quantize."""

    file_type: str
    source: str = "f32.gguf"
    imatrix: str | None = None
    tensor_types: tuple[str, ...] = ()
    kv_overrides: tuple[str, ...] = ()
    prune_layers: str | None = None
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    flags: tuple[str, ...] = field(default=())

    def arguments(self, target: str) -> list[str]:
        """Return llama-quantize's command line."""
        pairs = [("--imatrix", self.imatrix), ("--prune-layers", self.prune_layers)]
        pairs += [("--output-tensor-type", self.output_tensor_type)]
        pairs += [("--token-embedding-type", self.token_embedding_type)]
        pairs += [("--tensor-type", text) for text in self.tensor_types]
        pairs += [("--override-kv", text) for text in self.kv_overrides]
        options = [word for name, value in pairs if value is not None for word in (name, value)]
        return [*(f"--{flag}" for flag in self.flags), *options, self.source, target, self.file_type, "2"]


CASES = {
    "q4_k_m": GoldenCase("Q4_K_M"),
    "q4_k_m_bf16": GoldenCase("q4_k", source="bf16.gguf"),
    "q4_k_m_imatrix": GoldenCase("Q4_K_M", imatrix="imatrix.gguf"),
    "q4_k_m_legacy": GoldenCase("Q4_K_M", imatrix="imatrix.dat"),
    "q2_k_imatrix": GoldenCase("Q2_K", imatrix="imatrix.gguf"),
    "iq4_xs_imatrix": GoldenCase("IQ4_XS", imatrix="imatrix.gguf"),
    "q2_k_s_legacy": GoldenCase("Q2_K_S", imatrix="imatrix.dat"),
    "q4_0_imatrix": GoldenCase("Q4_0", imatrix="imatrix.gguf", source="f16.gguf"),
    "mxfp4": GoldenCase("MXFP4_MOE"),
    "pure": GoldenCase("Q5_K_M", flags=("pure",)),
    "leave_output": GoldenCase("Q3_K_M", flags=("leave-output-tensor",)),
    "types": GoldenCase("Q4_K_S", tensor_types=("ATTN_V=q8_0", "blk.1.ffn=q6_k", r"\.0\.=f16")),
    "outer_types": GoldenCase("Q2_K", output_tensor_type="q8_0", token_embedding_type="BF16"),
    "pruned": GoldenCase("Q4_K_M", prune_layers="1", imatrix="imatrix.gguf"),
    "overridden": GoldenCase(
        "Q4_K_M",
        kv_overrides=(
            "llama.expert_count=int:8",
            "general.name=str:Other = name",
            "new.number=int:-5",
            "new.float=float:0.5",
            "new.flag=bool:true",
        ),
    ),
    "copied": GoldenCase("COPY", source="bf16.gguf"),
    "requantized": GoldenCase("Q4_0", source="q8_0.gguf", flags=("allow-requantize",)),
}


TYPES_FILE = "attn_v=q8_0 blk.1.ffn=q6_k\n\\.0\\.=f16\n"
IMATRIX = ("--imatrix", "imatrix.gguf")
# llama-quantize's command lines that `moe-gguf quantize` understands too: options alone, on f32.gguf, and the type.
SAME_OPTIONS = {
    "type_file": (("--tensor-type-file", "types.txt"), "Q4_K_S"),
    "type_file_and_type": (("--tensor-type", "attn_v=q6_k", "--tensor-type-file", "types.txt"), "Q4_K_S"),
    "include": ((*IMATRIX, "--include-weights", "ffn_down", "--include-weights", "attn_v"), "Q4_K_M"),
    "exclude": ((*IMATRIX, "--exclude-weights", "ffn", "--exclude-weights", "blk.1.attn_q"), "Q4_K_M"),
    "exclude_all": ((*IMATRIX, "--exclude-weights", "blk"), "Q4_K_M"),
}


def write_sources(folder: Path) -> None:
    """Write every source that a case names, except q8_0.gguf, which a quantizer makes."""
    for name in ("f32", "f16", "bf16"):
        write_tiny(folder / f"{name}.gguf", qtype=name.upper())
    write_tiny_imatrices(folder)
    (folder / "types.txt").write_text(TYPES_FILE)
