"""The driver says when the disk of its storage fills up: those who wait for room are workers, with logs of their own."""

from __future__ import annotations

import logging
import time

from components.storage.folder import Folder
from components.storage.free_room import lack_of_room

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
REMIND_SECONDS = 180.0


class DiskWatch:
    """`needed`: bytes of the largest checkpoint."""

    def __init__(self, folder: Folder, needed: int) -> None:
        self._folder, self._needed = folder, needed
        self._next_look = self._next_word = 0.0
        self._lacks = False

    def look(self) -> None:
        """Called often; most calls do nothing."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        lack = lack_of_room(self._folder, self._needed)
        if lack and (not self._lacks or now >= self._next_word):
            self._next_word = now + REMIND_SECONDS
            log.warning("%s", lack)
        if self._lacks and not lack:
            log.warning("%s: its disk has room for a checkpoint again", self._folder)
        self._lacks = bool(lack)
