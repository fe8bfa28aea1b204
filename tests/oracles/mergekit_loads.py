"""Load checkpoint folders, such as our merges, in transformers: every key must be there and no other.

python -m tests.oracles.mergekit_loads FOLDER...      (in an environment with transformers)
"""

import sys
from pathlib import Path

from .mergekit_merges import logits


def main() -> None:
    """Load every folder; `logits` fails when a key is missing or unexpected."""
    for folder in sys.argv[1:]:
        print(folder, logits(Path(folder))[:4])


if __name__ == "__main__":
    main()
