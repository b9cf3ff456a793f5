"""The verb `app`: a web page on this machine, with a tab for photos and one for the webcam.

Served by Werkzeug, which TensorBoard brings in anyway: nothing more to install, where Gradio would be thirty packages,
and each webcam frame is one request whose successor is sent when its answer is there, so that no frame ever waits in a
queue. Photos and frames are held in memory while they are looked at, and nowhere else.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import io
import json
import re
import secrets
import socket
import struct
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import cv2
import numpy as np
from PIL import Image
from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    Gone,
    HTTPException,
    NotFound,
    RequestEntityTooLarge,
    ServiceUnavailable,
)
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from tfface.errors import UserError
from tfface.faces.detect import Detector
from tfface.faces.photos import read_photo
from tfface.faces.track import Tracker
from tfface.online.live import LiveFaces, load_live_detector
from tfface.online.shots import ShotPredictor
from tfface.serving.predictor import Predictor

PHOTO_BYTES, FRAME_BYTES = 16 << 20, 2 << 20
"""Largest upload of a photo and of a webcam frame."""

LONGEST_SIDE = 1600
"""Larger photos are shrunk to it, pixels, before faces are looked for: it bounds time and memory."""

SESSIONS, IDLE = 4, 30.0
"""Webcams at once, and seconds without a frame after which one is forgotten."""

LONGEST_UPLOAD = 60.0
"""Seconds within which a request must be here whole: one that comes a byte at a time would keep a thread for ever."""

LOCAL = ("127.0.0.1", "localhost", "::1")

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self)",
}


@dataclass(eq=False)
class _Session:
    """A webcam: its tracks, and when it was heard of last."""

    live: LiveFaces
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: float = field(default_factory=time.monotonic)


class App:
    """The page and what it asks for, as a WSGI application.

    `GET /` is the page. `POST /photo` takes the bytes of a photo, `POST /frame/SESSION` those of a webcam frame, `POST
    /end/SESSION` forgets a webcam; the answers are JSON.

    Args:
        shots: predicts shots, for all webcams together; its model predicts photos too.
        detector: finds faces in webcam frames. Photos go through the predictor's own.
        sure: least score of a face in a webcam frame that begins a track.
        hosts: names under which the page may be asked for; any if empty. Without the check another web site could have
            its name point here and read the answers (DNS rebinding).
    """

    def __init__(self, shots: ShotPredictor, detector: Detector, sure: float = 0.5, hosts: tuple[str, ...] = LOCAL):
        self.shots = shots
        self.detector = detector
        self.sure = sure
        self.hosts = hosts
        self._page = importlib.resources.files("tfface").joinpath("online/page.html").read_text("utf-8")
        self._sessions: dict[str, _Session] = {}
        self._ended: deque[str] = deque(maxlen=4 * SESSIONS)
        self._lock = threading.Lock()
        self._one_photo = threading.Lock()

    def __call__(self, environ, start_response):
        request = Request(environ)
        try:
            self._check_origin(request)
            response = self._answer(request)
        except UserError as error:
            response = _json({"error": str(error)}, 400)
        except HTTPException as error:
            response = _json({"error": error.description}, error.code)
        response.headers.update(HEADERS)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        match request.method, request.path.strip("/").split("/"):
            case "GET" | "HEAD", [""]:
                return self._show_page()
            case "POST", ["photo"]:
                return _json(self._photo(_body(request, PHOTO_BYTES)))
            case "POST", ["frame", name] if re.fullmatch(r"[0-9a-zA-Z-]{8,64}", name):
                return _json(self._frame(name, _body(request, FRAME_BYTES)))
            case "POST", ["end", name]:
                with self._lock:
                    self._sessions.pop(name, None)
                    self._ended.append(name)
                return Response(status=204)
        raise NotFound

    def _check_origin(self, request: Request) -> None:
        if self.hosts and urlsplit(f"//{request.host}").hostname not in self.hosts:
            raise Forbidden(f"This page is served to {', '.join(self.hosts)} only.")
        if request.method != "POST":  # a link to the page may stand anywhere
            return
        origin = request.headers.get("Origin", "")
        own = not origin or origin.partition("://")[2] == request.host
        # What the browser itself knows of it, where it says so: a proxy between may change the host.
        if request.headers.get("Sec-Fetch-Site", "same-origin" if own else "") not in ("same-origin", "none"):
            raise Forbidden(f"Another web site may not use this page. Received: Origin {origin}, Host {request.host}.")

    def _show_page(self) -> Response:
        nonce = secrets.token_urlsafe(16)
        response = Response(self._page.replace("NONCE", nonce), mimetype="text/html")
        response.headers["Content-Security-Policy"] = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
            "img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; frame-ancestors 'none'; "
            "base-uri 'none'"
        )
        return response

    def _photo(self, data: bytes) -> dict:
        with self._one_photo:
            photo = read_photo(data)
            height, width = photo.shape[:2]
            scale = min(1.0, LONGEST_SIDE / max(height, width))
            if scale < 1:
                size = max(1, round(width * scale)), max(1, round(height * scale))
                photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
            faces = self.shots.predictor([photo])[0]
        return _found(photo, [face.to_json() for face in faces])

    def _frame(self, name: str, data: bytes) -> dict:
        begun = time.monotonic()
        image = _decode_frame(data)  # first, so that what is no picture takes no webcam's place
        session = self._session(name)
        if not session.lock.acquire(blocking=False):
            raise ServiceUnavailable("The frame before is still being worked on: send the next one after its answer.")
        try:
            session.seen = time.monotonic()
            faces = session.live(image, session.seen)
            self.shots.timing.note("frame", time.monotonic() - begun)
        finally:
            session.lock.release()
        latencies = {stage: round(value, 1) for stage, value in self.shots.timing.latencies().items()}
        return {**_found(image, [face.to_json() for face in faces]), "latency_ms": latencies}

    def _session(self, name: str) -> _Session:
        with self._lock:
            now = time.monotonic()
            for old in [key for key, session in self._sessions.items() if now - session.seen > IDLE]:
                del self._sessions[old]
            if name in self._ended:  # a frame that its page's goodbye has overtaken must not open it again
                raise Gone("This webcam was switched off.")
            if name not in self._sessions:
                if len(self._sessions) >= SESSIONS:
                    raise ServiceUnavailable(f"{SESSIONS} webcams are in use already: close one of the pages.")
                self._sessions[name] = _Session(LiveFaces(self.shots, self.detector, Tracker(sure=self.sure)))
            return self._sessions[name]


def _body(request: Request, most: int) -> bytes:
    request.max_content_length = most + 1  # what says that it is more is refused before it is read
    try:
        data = request.get_data(cache=False)
    except RequestEntityTooLarge:
        data = None
    if data is None or len(data) > most:  # one that comes in chunks does not say its length, and would be cut off
        raise RequestEntityTooLarge(f"Expected at most {most / (1 << 20):g} MB, received more: send a smaller picture.")
    return data


def _decode_frame(data: bytes) -> np.ndarray:
    """Not `read_photo`: a browser's own JPEGs need none of its care, and this takes a third of the time."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as header:
            size = header.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        size = (LONGEST_SIDE + 1,)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error):  # as `read_photo`
        size = ()
    if size and max(size) > LONGEST_SIDE:  # by the header alone: a bomb is not unpacked
        raise BadRequest(f"A frame has at most {LONGEST_SIDE} pixels a side.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if size else None
    except cv2.error:
        image = None
    if image is None:
        raise BadRequest("A frame is a JPEG or PNG picture.")
    return image


def _found(image: np.ndarray, faces: list[dict]) -> dict:
    """Faces with their boxes as shares of the picture's width and height, so that the page may show it at any size."""
    height, width = image.shape[:2]
    sides = np.array([width, height, width, height])
    for face in faces:
        face["box"] = np.round(np.array(face["box"]) / sides, 4).tolist()
    return {"width": width, "height": height, "faces": faces}


def _json(value: dict, status: int = 200) -> Response:
    return Response(json.dumps(value), status, mimetype="application/json")


class _Handler(WSGIRequestHandler):
    timeout = 30  # between two pieces

    def setup(self) -> None:
        super().setup()
        self._too_late = threading.Timer(LONGEST_UPLOAD, self._stop_reading)
        self._too_late.daemon = True
        self._too_late.start()

    def finish(self) -> None:
        self._too_late.cancel()
        super().finish()

    def _stop_reading(self) -> None:
        """Nothing more comes in; an answer that is being worked on still goes out."""
        with contextlib.suppress(OSError):  # it was closed at this moment
            self.connection.shutdown(socket.SHUT_RD)

    def log_request(self, *_) -> None:
        """Nothing: a line a frame would bury what matters."""


def make_app_server(app: App, host: str = "127.0.0.1", port: int = 8000) -> BaseWSGIServer:
    """A server for the page, bound but not yet serving; `serve_forever` and `shutdown` run and end it.

    Raises:
        UserError: the address is in use, or not this machine's.
    """
    _check_address(host, port)
    return make_server(host, port, app, threaded=True, request_handler=_Handler)


def _check_address(host: str, port: int) -> None:
    """Werkzeug would end the process."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port must lie between 0 and 65535. Received: {port}.")
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be served: {error.strerror}. Choose another --port or --host."
        ) from error


def serve(
    host: str = "127.0.0.1", port: int = 8000, model: str = "compact", detector: str = "yolo", bfloat16: bool = False
) -> int:
    """Serves the page until Ctrl-C.

    Args:
        host: address that is listened at. Any other than this machine's own has no password before it.
        port: its port.
        model: a run's folder or a shipped model.
        detector: name of the detector for the webcam; photos always go through MTCNN.
        bfloat16: compute the model in bfloat16 where the processor can.

    Returns:
        Exit code 0.
    """
    _check_address(host, port)  # before the models are loaded
    finder, tracker = load_live_detector(detector)
    with ShotPredictor(Predictor(model, "mtcnn"), bfloat16=bfloat16) as shots:
        app = App(shots, finder, tracker.sure, LOCAL if host in LOCAL else ())
        server = make_app_server(app, host, port)
        if host not in LOCAL:
            print(
                f"tfface: {host} is open to others: the page has no password, and browsers give a webcam only to "
                "https or localhost.",
                file=sys.stderr,
            )
        shown = f"[{host}]" if ":" in host else host
        print(f"tfface app: http://{shown}:{server.port}  (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        server.server_close()
    return 0
