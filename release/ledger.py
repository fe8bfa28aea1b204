"""What earlier runs of a release have done: steps with digests of their inputs, their files, their results.

    WORK/steps.json    {"steps": {name: {"inputs", "state", "outputs": {path: [bytes, ns, sha256]}, "result"}},
                        "hashes": {path: [bytes, ns, sha256]}}

A step is skipped when its inputs are those that it was done with and its files are as it left them. Paths of outputs
are relative to the release folder, those of inputs absolute.
"""

import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..formats.errors import OutputError
from ..jobs.listener import SILENT, Listener
from .checksums import sha256_of

BEGUN, DONE = "begun", "done"
VERSION = 1


def digest(value: Any) -> str:
    """Return a digest of anything that JSON can hold; the order of keys does not count."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class Ledger:
    """The steps of one release. Every change is on the disk before the next one."""

    def __init__(self, folder: Path, work: Path, listener: Listener = SILENT) -> None:
        """`folder` is the release's, `work` where this is kept; a ledger that cannot be read counts as none."""
        self.folder, self.path, self._listener = folder, work / "steps.json", listener
        self._steps: dict[str, dict[str, Any]] = {}
        self._hashes: dict[str, list[Any]] = {}
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document["version"] == VERSION:
                self._steps, self._hashes = document["steps"], document["hashes"]
        except (OSError, ValueError, KeyError, TypeError):
            pass

    def sha256(self, path: Path) -> str:
        """Return a file's SHA-256; it is read only if its size or time of change are others than when it was read."""
        key, state = str(path.resolve()), _state(path)
        known = self._hashes.get(key)
        if known and state == known[:2]:
            return str(known[2])
        with self._listener.bar(path.stat().st_size, f"checksum of {path.name}", delay=2) as bar:
            found = sha256_of(path, bar.update)
        self._hashes[key] = [*state, found] if state else []
        self._save()
        return found

    def kept(self, step: str, inputs: str) -> Any:
        """Return the result of a step that is done with these inputs, its files untouched; None when it must be done.

        Files of a run that was killed between their last byte and its note are whole, since they have their names.
        """
        entry = self._steps.get(step)
        if entry is None or entry["inputs"] != inputs:
            return None
        if entry["state"] == DONE and all(
            _state(self.folder / name) == was[:2] for name, was in entry["outputs"].items()
        ):
            return entry["result"]
        return None

    def whole(self, step: str, inputs: str, outputs: Sequence[Path]) -> bool:
        """Tell whether a run that began this step with these inputs got as far as naming all its files."""
        entry = self._steps.get(step)
        if entry is None or entry["state"] != BEGUN or entry["inputs"] != inputs:
            return False
        return all(
            path.is_file()
            and self._name(path) in entry["outputs"]
            and _state(path) != entry["outputs"][self._name(path)]
            for path in outputs
        )

    def begin(self, step: str, inputs: str, outputs: Sequence[Path] = (), force: bool = False) -> None:
        """Note that a step's files are being made. Raises OutputError when one is there that no run has made."""
        before = self._steps.get(step)
        if before and before["state"] == BEGUN and before["inputs"] == inputs:
            return
        for path in outputs:
            if path.exists() and not force and not self.owns(path):
                raise OutputError(
                    f"{path}: exists, and no run of this release made it; move it away, or overwrite it with --force"
                )
        states = {self._name(path): _state(path) for path in outputs}
        self._steps[step] = {"inputs": inputs, "state": BEGUN, "outputs": states, "result": None}
        self._save()

    def done(self, step: str, inputs: str, result: Any, outputs: Sequence[Path] = ()) -> Any:
        """Note that a step is done, and return its result as JSON gives it back."""
        states = {self._name(path): [*(_state(path) or ()), self.sha256(path)] for path in outputs}
        result = json.loads(json.dumps(result))
        self._steps[step] = {"inputs": inputs, "state": DONE, "outputs": states, "result": result}
        self._save()
        return result

    def owns(self, path: Path) -> bool:
        """Tell whether a step of this release has made, or began to make, a file."""
        return any(self._name(path) in entry["outputs"] for entry in self._steps.values())

    def outputs(self) -> set[str]:
        """Return the names of all files that steps have made."""
        return {name for entry in self._steps.values() for name in entry["outputs"]}

    def forget(self, steps: Sequence[str]) -> None:
        """Drop steps that are no part of the release any more."""
        for step in steps:
            self._steps.pop(step, None)
        self._save()

    @property
    def steps(self) -> Mapping[str, Mapping[str, Any]]:
        """What is known of each step."""
        return self._steps

    def _name(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _save(self) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        partial.write_text(
            json.dumps({"version": VERSION, "steps": self._steps, "hashes": self._hashes}, indent=1), encoding="utf-8"
        )
        os.replace(partial, self.path)


def _state(path: Path) -> list[int] | None:
    """Return what changes when a file does: its size and time of change."""
    try:
        state = path.stat()
    except OSError:
        return None
    return [state.st_size, state.st_mtime_ns]
