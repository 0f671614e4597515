"""Ctrl-C and SIGTERM: the step under way is finished and saved first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun passes a Ctrl-C on that its processes have got already.
SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """Whether the user or the system asked the run to stop.

    The first signal is a request, to be looked at between steps; a second one, or one during :meth:`at_once`, raises
    ``KeyboardInterrupt`` where the program stands.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._at_once = False

    @property
    def requested(self) -> bool:
        return self._asked_at is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block. Only the main thread can; elsewhere they stay as they are."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block nothing would be lost: stop without waiting.

        Raises:
            KeyboardInterrupt: when asked, before or inside the block.
        """
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.requested and time.monotonic() - self._asked_at > SAME_REQUEST_SECONDS
        self._asked_at = time.monotonic() if self._asked_at is None else self._asked_at
        if again or self._at_once:
            raise KeyboardInterrupt
