"""The memory of a phase's process, watched from this one: what the kernel says is resident, and what the card gives."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from experiments.benchmarks.gpu_kit.meters import used_on_card

EVERY = 0.02  # seconds between two looks
WORKER = b"fresh_worker"  # in its command line; the processes that it starts work in the same folder


@dataclass(slots=True)
class PhasePeaks:
    """Bytes at most. `resident` is VmHWM: what the process allocated, and the pages of mapped files that it has touched.

    Of a model that computes on weights mapped from their file these pages are its weights. `anonymous` is without them.
    `on_card` is all that the card gave since the watch began, the process's CUDA context counted; 0 without a card.
    """

    resident: int = 0
    anonymous: int = 0
    on_card: int = 0

    @property
    def of_model(self) -> int:
        """Where the model is."""
        return self.on_card or self.resident


class Watch:
    """Looks, while its context is entered, at the worker whose working directory is `folder`."""

    def __init__(self, folder: Path, *, on_gpu: bool) -> None:
        self.folder, self.on_gpu = str(folder.resolve()), on_gpu
        self.peaks = PhasePeaks()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_until_over, daemon=True)

    def __enter__(self) -> Self:
        self._used_before = used_on_card() if self.on_gpu else 0
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_until_over(self) -> None:
        worker: Path | None = None
        while not self._over.wait(EVERY):
            if self.on_gpu:
                self.peaks.on_card = max(self.peaks.on_card, used_on_card() - self._used_before)
            worker = worker or self._find()
            with contextlib.suppress(OSError):  # it has ended
                if worker is not None:
                    self._look_at(worker)

    def _find(self) -> Path | None:
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it is another user's, or has just ended
                if str((process / "cwd").readlink()) == self.folder and WORKER in (process / "cmdline").read_bytes():
                    return process
        return None

    def _look_at(self, process: Path) -> None:
        lines = (line.split() for line in (process / "status").read_text(encoding="utf-8").splitlines())
        sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[-1] == "kB"}
        self.peaks.resident = max(self.peaks.resident, sizes.get("VmHWM:", 0))
        self.peaks.anonymous = max(self.peaks.anonymous, sizes.get("RssAnon:", 0))


@contextlib.contextmanager
def processes_on(device_name: str) -> Iterator[None]:
    """Inside, new processes see no card if the device is the CPU: a proof takes the card where there is one."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device_name == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
