"""The largest mix that runs in given memory: a purse and bytes of VRAM and RAM come in, bytes of a file go out."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from ..formats.errors import EngineError, PlanError
from ..formats.sizes import granted
from .loading import LoadRequest, available_devices, wished_options
from .working_files import roomy_cache

if TYPE_CHECKING:
    from ..runner.placing.memory import ModelFacts
    from .purse import Purse


def largest_that_fits(purse: "Purse", vram: tuple[int, ...], ram: int | None) -> int:
    """Return the bytes of the largest file on the frontier that can be placed in this memory with a default context.

    Weights must lie in memory: none are left to be read from the disk again and again. Raises PlanError when not even
    the smallest types fit.
    """
    from dataclasses import replace

    from ..runner.placing.memory import context_length, with_tensor_bytes
    from ..runner.placing.placement import plan

    facts = _facts(purse)
    load = LoadRequest(vram=vram, ram=ram, use_mmap=False)
    devices = [device for device in available_devices(load, hypothetical=True) if vram or not device.offloads]
    wish = wished_options(load, facts, devices)
    wish = replace(wish, n_ctx=context_length(facts, wish))

    def fits(number: int) -> bool:
        types = purse.curve.types_at(number)
        sizes = {choice.name: choice.n_bytes for choice in purse.whole.choices}
        sizes |= {name: option.n_bytes for name, option in types.items()}
        try:
            plan(with_tensor_bytes(facts, facts.name, sizes), devices, wish)
        except EngineError:
            return False
        return True

    low, high = -1, len(purse.curve.steps)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    if low < 0:
        room = " + ".join(granted(n_bytes) for n_bytes in (*vram, *([ram] if ram else [])))
        raise PlanError(
            f"the smallest types of these tensors take {granted(purse.sizes[0])}, which does not run in {room} with a "
            f"context of {wish.n_ctx} tokens"
        )
    return purse.others + purse.curve.sizes[low]


def _facts(purse: "Purse") -> "ModelFacts":
    """Return what placing must know, from a file that has a header and a size and no weights."""
    from ..formats.gguf_file import read_gguf
    from ..runner.placing.memory import read_facts

    with TemporaryDirectory(prefix="moe-gguf-header-", dir=roomy_cache(0)) as folder:
        path = Path(folder) / "model.gguf"
        layout = purse.whole.output(path, "").shards()[0][1]
        with open(path, "wb") as file:
            file.write(layout.header)
            file.truncate(layout.n_bytes)
        return read_facts(read_gguf(path))
