"""Ask transformers' config classes what they take for keys that config.json does not have.

In: nothing; out: tests/models/golden/config_defaults.json, by family and key of config.json. See README.md.
"""

import json
from pathlib import Path
from typing import Any

from moe_gguf.models.families import FAMILIES

GOLDEN = Path(__file__).parent.parent / "models" / "golden" / "config_defaults.json"
# Its config class lies in its repositories: configuration_deepseek.py of deepseek-ai/deepseek-moe-16b-base.
NOT_IN_TRANSFORMERS = ("DeepseekForCausalLM",)
SPELLINGS = {"num_local_experts": ("num_local_experts", "num_experts")}


def defaults(hf_name: str) -> dict[str, Any]:
    """Return what the config class of a family says of each key that is read or checked; its model's class names it."""
    import transformers  # pyright: ignore[reportMissingImports]

    family = FAMILIES[hf_name]
    said = getattr(transformers, hf_name).config_class.from_dict({"architectures": [hf_name]}).to_dict()
    said |= said["rope_parameters"]
    names = [key.names[0] for key in family.keys] + [fixed.name for fixed in family.fixed]
    found = {name: next((one for one in SPELLINGS.get(name, (name,)) if one in said), None) for name in names}
    return {name: said[one] for name, one in found.items() if one is not None}


def main() -> None:
    """Ask for every family and write the golden file."""
    golden = {name: defaults(name) for name in FAMILIES if name not in NOT_IN_TRANSFORMERS}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
