"""How long each stage takes, and how many frames a second come out."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

WINDOW = 256
"""Measurements of a stage that are remembered."""

SECONDS = 3.0
"""The rate is counted over the last so many seconds."""


class Timing:
    """Latencies of the last measurements of each stage. Safe to use from several threads."""

    def __init__(self):
        self._stages: dict[str, deque[float]] = {}
        self._ticks: deque[float] = deque()
        self._lock = threading.Lock()

    def note(self, stage: str, seconds: float) -> None:
        """Notes that a stage took so long once."""
        with self._lock:
            self._stages.setdefault(stage, deque(maxlen=WINDOW)).append(seconds)

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Notes how long the block takes."""
        begun = time.monotonic()
        yield
        self.note(stage, time.monotonic() - begun)

    def tick(self) -> None:
        """Notes that a frame has come out."""
        with self._lock:
            now = time.monotonic()
            self._ticks.append(now)
            while now - self._ticks[0] > SECONDS:
                self._ticks.popleft()

    @property
    def rate(self) -> float:
        """Frames that came out, a second."""
        with self._lock:
            if len(self._ticks) < 2:
                return 0.0
            return (len(self._ticks) - 1) / max(self._ticks[-1] - self._ticks[0], 1e-6)

    def latencies(self, share: float = 0.5) -> dict[str, float]:
        """Milliseconds of each stage: the median, or another share of the measurements, in the order first seen."""
        with self._lock:
            return {stage: 1e3 * float(np.quantile(values, share)) for stage, values in self._stages.items()}
