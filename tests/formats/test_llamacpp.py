"""The ggml libraries are those that libllama uses; nothing is loaded twice. Each thread hears its own log."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from moe_gguf.formats.errors import EngineError
from moe_gguf.formats.llamacpp import ggml, listening
from moe_gguf.runner.model import Model

from ..loaded_models import ONE_THREAD
from ..runner.tiny_gguf import write_tiny

PROGRAM = """
import psutil
from pathlib import Path
from moe_gguf.formats.llamacpp import ggml
from moe_gguf.quantize.ggml import quantize_chunk
from moe_gguf.runner.placing.devices import list_devices
list_devices()
for name in ("ggml", "ggml-base", "ggml-cpu"):
    ggml(name)
names = {Path(part.path).name for part in psutil.Process().memory_maps()}
print(*sorted(name.split(".")[0] for name in names if name.startswith("libggml")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's libraries")
def test_each_library_is_loaded_once() -> None:
    output = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    loaded = output.split()
    assert "libggml-base" in loaded and len(loaded) == len(set(loaded))


def test_a_library_has_its_own_signatures() -> None:
    ggml("ggml-base").ggml_type_sizef.restype = None
    assert ggml("ggml").ggml_type_sizef.restype is not None
    assert ggml("ggml-base") is ggml("ggml-base")


def test_a_backend_that_is_not_built_in_is_named() -> None:
    with pytest.raises(EngineError, match="no ggml-abacus library in "):
        ggml("ggml-abacus")


def test_models_of_two_threads_do_not_hear_each_other(tmp_path: Path) -> None:
    heard: dict[str, list[str]] = {"one.gguf": [], "two.gguf": []}

    def load(path: Path) -> None:
        for _ in range(5):
            with listening(lambda _, text: heard[path.name].append(text)), Model(path, ONE_THREAD):
                pass

    threads = [threading.Thread(target=load, args=(write_tiny(tmp_path / name),)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, lines in heard.items():
        text = "".join(lines)
        assert text.count(name) == 5 and not any(other in text for other in heard if other != name)
