"""Ctrl-C and SIGTERM: finish the current step and save before the run stops."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# torchrun forwards a Ctrl-C that its processes have received already; signals closer together than
# this are one request.
SAME_REQUEST_SECONDS = 2.0


class StopRequest:
    """Whether the user or the system asked the run to stop.

    The first signal sets :attr:`requested`, which the loop reads between steps. A second signal,
    or one during :meth:`at_once`, raises ``KeyboardInterrupt`` immediately.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._at_once = False

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._requested_at is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the signals inside the block; only the main thread can, others do nothing."""
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
        """A block that has nothing to save: a request stops it immediately.

        Raises:
            KeyboardInterrupt: on a request before or inside the block.
        """
        self._at_once = True
        try:
            if self.requested:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._requested_at
        self._requested_at = now if first is None else first
        repeated = first is not None and now - first > SAME_REQUEST_SECONDS
        if repeated or self._at_once:
            raise KeyboardInterrupt
