"""Let lm-evaluation-harness ask its own `hf` model, in float32, and keep what it answers.

In: nothing; out: tests/measure/golden/harness.json. See README.md.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from ..checkpoints import write_checkpoint
from ..measure.harness_cases import CHECKPOINT, CHOICE, WRITTEN, answers_of, write_tasks

GOLDEN = Path(__file__).parent.parent / "measure" / "golden" / "harness.json"


def main() -> None:
    """Ask both tasks and write the golden file."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager

    hf_model: Any = huggingface.HFLM

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        checkpoint = write_checkpoint(folder / "checkpoint", CHECKPOINT)
        # What chat models are published with, and GGUF readers know by the token's name: <|im_end|> ends a text too.
        (checkpoint / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
        model = hf_model(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=4)
        manager = TaskManager(include_path=name)
        found: Any = simple_evaluate(model, tasks=[CHOICE, WRITTEN], task_manager=manager, bootstrap_iters=0)
    results = {
        task: {key: value for key, value in found["results"][task].items() if key.partition(",")[2] == "none"}
        for task in (CHOICE, WRITTEN)
    }
    kept = {key: value for values in results.values() for key, value in values.items() if "stderr" not in key}
    GOLDEN.write_text(json.dumps({"results": kept, **answers_of(found["samples"])}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
