"""What llama.cpp can compute on here: its devices, those of workers, and how it was built."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .listener import SILENT, Listener
from .loading import LoadRequest, available_devices

if TYPE_CHECKING:
    from ..runner.placing.devices import Build, Device


@dataclass(frozen=True)
class Request:
    """Which workers (HOST:PORT) are asked too."""

    rpc: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The devices, and how the llama.cpp that is loaded was built."""

    devices: "tuple[Device, ...]"
    build: "Build"

    def as_json(self) -> dict[str, Any]:
        """Return what `devices --json` prints."""
        return {"devices": [device_report(device) for device in self.devices], "build": asdict(self.build)}


def run(request: Request = Request(), listener: Listener = SILENT) -> Report:
    """Look at this machine and at the workers. Raises EngineError for a worker that does not answer."""
    from ..runner.placing.devices import describe_build

    return Report(tuple(available_devices(LoadRequest(rpc=request.rpc), listener)), describe_build())


def device_report(device: "Device") -> dict[str, str | int]:
    """Return the part of a report that `devices` and `fit` share."""
    return {
        "name": device.name,
        "kind": device.kind,
        "free_bytes": device.free_bytes,
        "total_bytes": device.total_bytes,
    }
