"""A clip of two people who do not exist, and a small model, for everything that is live."""

import numpy as np
import pytest

from tfface.faces import synthesize
from tfface.online.record import VideoRecorder

RATE, FRAMES = 15, 45


@pytest.fixture(scope="session")
def people() -> list[np.ndarray]:
    """Frames (360, 640, 3) in which two faces sway side by side."""
    faces = [synthesize.face(seed, yaw=0, size=200).image for seed in (11, 12)]
    frames = []
    for number in range(FRAMES):
        frame = np.full((360, 640, 3), 128, np.uint8)
        for place, face in enumerate(faces):
            x = 60 + 300 * place + round(15 * np.sin(number / 8 + place))
            frame[80:280, x : x + 200] = face
        frames.append(frame)
    return frames


@pytest.fixture(scope="session")
def clip(people, tmp_path_factory):
    """The frames as a video file, 15 a second, 3 seconds long."""
    path = tmp_path_factory.mktemp("clip") / "people.mp4"
    video = VideoRecorder(path, RATE)
    for number, frame in enumerate(people):
        video.write(frame, number / RATE)
    video.close()
    return path


@pytest.fixture(scope="session")
def shots(light_run):
    """Workers that predict with the light run's model."""
    from tfface.online.shots import ShotPredictor
    from tfface.serving.predictor import Predictor

    with ShotPredictor(Predictor(light_run.folder)) as shots:
        yield shots
