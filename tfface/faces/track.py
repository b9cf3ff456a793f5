"""Boxes over time become tracks: the same number for the same face, frame after frame.

The association is OC-SORT's, by the library `trackers` (Apache 2.0, no PyTorch); this module gives it faces and times
and decides what has been a face long enough to get a number. It knows positions and motion only; no face is recognised,
so who leaves and comes back after `remember` seconds gets a new number.
"""

from __future__ import annotations

from collections import Counter, deque

import cv2
import numpy as np

from tfface.errors import UserError
from tfface.faces.detect import Faces

UNSURE = 0
"""The number of a face that is not tracked (yet): seen too few times, or never with certainty."""


class Tracker:
    """Gives faces numbers that stay the same over time.

    OC-SORT (Cao et al., "Observation-Centric SORT", CVPR 2023): a Kalman filter moves each track by the time that has
    passed, so frames may be missing; boxes are matched by overlap and direction; and a track that was out of sight is
    also looked for where it was last seen, which a filter that ran blind for a second no longer knows.

    Args:
        remember: seconds that a track outlives without being seen: behind somebody, turned away, out of the picture.
            Where frames come slower than that, it outlives one of them.
        sure: least score of a sighting that counts towards a number. What is less certain carries a track on but makes
            none.
        times: sightings after which a face gets its number, all but the first of them certain; at least 2. What is seen
            once is noise more often than a face.
        rate: frames a second that are expected; only how fast the filter trusts a motion depends on it.

    Raises:
        UserError: an argument out of range.
    """

    def __init__(self, remember: float = 1.5, sure: float = 0.5, times: int = 3, rate: float = 30.0):
        if not (0 < remember <= 60 and 0 < sure < 1 and times >= 2 and rate > 0):
            raise UserError(
                "a tracker needs remember in (0, 60] seconds, sure in (0, 1), times of 2 and more and a rate above 0; "
                f"received {remember}, {sure}, {times}, {rate}"
            )
        from trackers import OCSORTTracker

        self.remember = remember
        self.lasts = remember
        """Seconds that a track outlives without being seen, at the pace of the frames that came last."""
        self.sure = sure
        self.times = times
        self._tracker = OCSORTTracker(
            lost_track_buffer=round(30 * remember),  # the library counts in frames at 30 a second
            frame_rate=rate,
            high_conf_det_threshold=0,  # the detector has chosen already
            minimum_iou_threshold=0.1,
            minimum_consecutive_frames=1,  # its own rule drops the number after each missed frame; `times` does not
        )
        self._sightings: Counter[int] = Counter()
        self._numbers: dict[int, int] = {}
        self._given = 0
        self._last = float("-inf")
        self._gaps: deque[float] = deque(maxlen=5)
        """Seconds between the last frames."""

    def update(self, faces: Faces, time: float) -> np.ndarray:
        """Takes in the faces of the next frame.

        Args:
            faces: what a detector found.
            time: when, in seconds from any beginning; greater than that of the frame before.

        Returns:
            (n,), int: the number of each face, from 1 on, in the order of `faces`; 0 (`UNSURE`) without a number.

        Raises:
            UserError: the time is not later than that of the frame before.
        """
        from supervision import Detections

        if not time > self._last:
            raise UserError(f"frames come in the order of their times: {time} s was received after {self._last} s")
        if np.isfinite(self._last):
            self._gaps.append(time - self._last)
            # The median: one long gap, as when a camera was away, still ends all tracks.
            self.lasts = max(self.remember, 2.5 * float(np.median(self._gaps)))
            self._tracker.maximum_time_without_update = self.lasts
        self._last = time
        order = np.arange(len(faces))
        found = Detections(xyxy=faces.boxes.astype(np.float64), confidence=faces.scores, data={"order": order})
        tracked = self._tracker.update(found, timestamp=time)
        numbers = np.full(len(faces), UNSURE)
        if len(tracked):  # an empty result has no "order"
            for place, identity in sorted(
                zip(tracked.data["order"].tolist(), tracked.tracker_id.tolist(), strict=True)
            ):
                if identity >= 0:
                    self._sightings[identity] += faces.scores[place] >= self.sure
                    numbers[place] = self._number(identity)
        alive = {track.tracker_id for track in self._tracker.tracks}
        for identity in self._sightings.keys() - alive:
            del self._sightings[identity]
            self._numbers.pop(identity, None)
        return numbers

    def reset(self) -> None:
        """Ends all tracks, as at a cut: what comes next gets new numbers."""
        self._tracker.reset()
        self._sightings.clear()
        self._numbers.clear()

    def _number(self, identity: int) -> int:
        if identity not in self._numbers:
            if self._sightings[identity] < self.times - 1:  # the library knows who it is from the second one on
                return UNSURE
            self._given += 1
            self._numbers[identity] = self._given
        return self._numbers[identity]


class CutDetector:
    """Notices that a video has cut to another picture, after which no track goes on.

    Without it a face that stands by chance where another stood before the cut would inherit its number and its shots.
    Two frames belong together while their thumbnails correlate: the correlation does not mind a change of light, and
    the best of a few small shifts does not mind somebody close to the camera who moves between frames that come slowly.
    What shows nothing, as in a fade through black, is passed over: the scene after it is compared with the one before.

    Args:
        least: correlation of neighbouring frames' thumbnails below which there is a cut between them.
    """

    SIZE = (32, 18)
    """Width and height of a thumbnail, pixels."""

    SHIFT = 1
    """Pixels of a thumbnail by which it is shifted at most, each way."""

    BLANK = 2.0
    """Standard deviation of a thumbnail, grey levels, below which a frame shows nothing."""

    def __init__(self, least: float = 0.5):
        self.least = least
        self._before: np.ndarray | None = None

    def __call__(self, image: np.ndarray) -> bool:
        """Whether there was a cut before this frame, (height, width, 3), uint8."""
        small = cv2.resize(image, self.SIZE, interpolation=cv2.INTER_AREA).astype(np.float32)
        if small.std() < self.BLANK:
            return False
        before, self._before = self._before, small
        if before is None:
            return False
        wider = cv2.copyMakeBorder(before, *[self.SHIFT] * 4, cv2.BORDER_REPLICATE)
        return bool(cv2.matchTemplate(wider, small, cv2.TM_CCOEFF_NORMED).max() < self.least)
