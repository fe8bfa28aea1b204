"""Run llama.cpp's convert_hf_to_gguf.py on our tiny checkpoints and write down what it produced.

In: the folder of llama.cpp's sources; out: tests/convert/golden/llamacpp.json. README.md tells how to run it.
"""

import json
import logging
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from .cases import CONVERSIONS, Conversion

GOLDEN = Path(__file__).parent.parent / "convert" / "golden" / "llamacpp.json"


def short(value: Any) -> Any:
    """Return a metadata value as it is, or a long list as its length and hash."""
    if not isinstance(value, list) or len(value) <= 8:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return {"length": len(value), "sha256": sha256(text.encode()).hexdigest()}


def describe(path: Path) -> dict[str, Any]:
    """Return a GGUF's metadata (key, types, value) and tensors (name, type, shape, hash), in order."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = [
        [key, [kind.name for kind in field.types], short(field.contents())]
        for key, field in reader.fields.items()
        if not key.startswith("GGUF.")
    ]
    tensors = [
        [t.name, t.tensor_type.name, [int(n) for n in t.shape], sha256(t.data.tobytes()).hexdigest()]
        for t in reader.tensors
    ]
    return {"metadata": metadata, "tensors": tensors}


def convert(converter: Any, conversion: Conversion, folder: Path) -> dict[str, Any]:
    """Convert one checkpoint with llama.cpp's script and describe the result."""
    source = conversion.write(folder)
    target = folder / "out.gguf"
    # llama.cpp knows pre-tokenizers by a hash over a real vocabulary's tokens; a tiny vocabulary has none.
    converter.TextModel.get_vocab_base_pre = lambda _self, _tokenizer: conversion.tiny.tokenizer
    sys.argv = [
        "convert_hf_to_gguf.py",
        str(source),
        "--outfile",
        str(target),
        "--outtype",
        conversion.outtype,
    ]
    converter.main()
    return describe(target)


def main() -> None:
    """Convert every case and write the golden file."""
    sys.path.insert(0, sys.argv[1])
    import convert_hf_to_gguf as script  # pyright: ignore[reportMissingImports]
    from conversion.base import TextModel  # pyright: ignore[reportMissingImports]

    script.TextModel = TextModel
    logging.disable(logging.INFO)
    golden: dict[str, Any] = {}
    for name, conversion in CONVERSIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            golden[name] = convert(script, conversion, Path(folder))
    lines = [f"{json.dumps(name)}: {json.dumps(result, ensure_ascii=False)}" for name, result in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
