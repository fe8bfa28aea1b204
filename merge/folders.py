"""What lies beside a checkpoint's weights and a merge must not mix up: its licence, and whether it has a tokenizer."""

from pathlib import Path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder has a tokenizer of its own; adapters have one when their training added tokens."""
    return any((folder / name).is_file() for name in TOKENIZERS)


def license_of(folder: Path) -> str | None:
    """Return the licence that a model card's metadata names."""
    import yaml

    path = folder / "README.md"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    try:
        metadata = yaml.safe_load(text.split("---", 2)[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    said = metadata.get("license") if isinstance(metadata, dict) else None
    return str(said) if said else None
