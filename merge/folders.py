"""What lies beside a checkpoint's weights and a merge must not mix up: tokens, chat template, licence."""

import json
from pathlib import Path
from typing import Any


def token_ids(folder: Path) -> dict[str, int] | None:
    """Return a tokenizer's ids by token, or None without a readable tokenizer.json."""
    content = _json(folder / "tokenizer.json")
    vocab = (content.get("model") or {}).get("vocab")
    if isinstance(vocab, list):
        vocab = {entry[0]: index for index, entry in enumerate(vocab)}
    if not isinstance(vocab, dict):
        return None
    return vocab | {token["content"]: token["id"] for token in content.get("added_tokens") or []}


def chat_template(folder: Path) -> str | None:
    """Return a checkpoint's chat template, from its own file or from tokenizer_config.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    template = _json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


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
    except (yaml.YAMLError, RecursionError):
        return None
    said = metadata.get("license") if isinstance(metadata, dict) else None
    return str(said) if said else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
