import base64
import contextlib
import functools
import http.client
import io
import itertools
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import types
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from werkzeug.test import Client

from tfface import cli
from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.faces.track import Tracker
from tfface.online import app as module
from tfface.online.app import App, make_app_server
from tfface.online.live import load_live_detector

LOCAL = {"base_url": "http://127.0.0.1:8000"}


def png(image) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def jpeg(image) -> bytes:
    return cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes()


@pytest.fixture(scope="module")
def app(shots):
    return App(shots, load_live_detector("mtcnn")[0])


@pytest.fixture
def client(app):
    app._sessions.clear()
    return Client(app)


def test_the_page_brings_all_it_needs(client):
    answer = client.get("/", **LOCAL)
    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    page = answer.text
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", page)  # nothing is fetched from elsewhere
    policy = answer.headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]
    assert page.count(f'nonce="{nonce}"') == 2
    assert "NONCE" not in page
    assert f"'nonce-{nonce}'" not in client.get("/", **LOCAL).headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"
    head = client.head("/", **LOCAL)
    assert (head.status_code, head.data) == (200, b"")
    assert head.headers["Content-Length"] == answer.headers["Content-Length"]


def test_a_photo_gives_its_faces_and_leaves_nothing(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, truths = synthesize.photo(4, 5)
    found = client.post("/photo", data=png(image), **LOCAL).json
    assert (found["height"], found["width"]) == image.shape[:2]
    assert len(found["faces"]) == len(truths)
    for face in found["faces"]:
        assert 0 <= min(face["box"]) <= max(face["box"]) <= 1
        assert sum(face["probabilities"]["race"].values()) == pytest.approx(1, abs=1e-2)
        assert face["age_spread"] > 0
    assert not list(tmp_path.iterdir())
    large = np.repeat(np.repeat(image, 4, axis=0), 4, axis=1)
    assert len(client.post("/photo", data=png(large), **LOCAL).json["faces"]) == len(truths)


def test_photos_of_no_use_are_refused_in_words(client, monkeypatch):
    blank = client.post("/photo", data=png(np.zeros((50, 60, 3), np.uint8)), **LOCAL)
    assert blank.json == {"width": 60, "height": 50, "faces": []}
    for data, word in ((b"no picture", "photo of 10 bytes is not a picture"), (b"", "empty")):
        answer = client.post("/photo", data=data, **LOCAL)
        assert answer.status_code == 400
        assert word in answer.json["error"]
    monkeypatch.setattr(module, "PHOTO_BYTES", 1000)
    assert client.post("/photo", data=b"x" * 1001, **LOCAL).status_code == 413


def test_a_webcam_is_tracked_from_frame_to_frame(client, shots, people, monkeypatch):
    # By a clock of its own: on a busy machine a frame may take longer than a track is remembered.
    ticks = itertools.count(start=int(20 * time.monotonic()))
    monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=lambda: next(ticks) / 20))
    for frame in people[:8]:
        answer = client.post("/frame/0123-abcd", data=jpeg(frame), **LOCAL)
        assert answer.status_code == 200
        shots.flush()
    found = answer.json
    assert [face["number"] for face in found["faces"]] == [1, 2]
    assert all(face["shots"] >= 1 and "gender" in face for face in found["faces"])
    assert {"detect", "track", "frame"} <= set(found["latency_ms"])


def test_webcams_are_kept_apart_bounded_and_forgotten(client, app, people, monkeypatch):
    frame = jpeg(people[0])
    for name in range(module.SESSIONS):
        assert client.post(f"/frame/session-{name}", data=frame, **LOCAL).status_code == 200
    assert client.post("/frame/one-too-many", data=frame, **LOCAL).status_code == 503
    assert client.post("/end/session-0", **LOCAL).status_code == 204
    # A frame that was on its way when the page said goodbye does not open the session again.
    assert client.post("/frame/session-0", data=frame, **LOCAL).status_code == 410
    assert client.post("/frame/one-too-many", data=frame, **LOCAL).status_code == 200
    assert len(app._sessions) == module.SESSIONS
    monkeypatch.setattr(module, "IDLE", 0.0)
    time.sleep(0.01)
    assert client.post("/frame/the-next", data=frame, **LOCAL).status_code == 200
    assert list(app._sessions) == ["the-next"]


def bomb(width: int, height: int) -> bytes:
    """A PNG of so many black pixels, in a few kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_frame_is_not_unpacked_before_its_size_is_known(client, app, people, monkeypatch):
    unpacked = []
    monkeypatch.setattr(module.cv2, "imdecode", lambda *_: unpacked.append(True))
    for size in ((1601, 10), (10, 1601), (12_000, 12_000), (60_000, 60_000)):
        answer = client.post("/frame/session-a", data=bomb(*size), **LOCAL)
        assert (answer.status_code, answer.json["error"]) == (400, "A frame has at most 1600 pixels a side.")
    assert not unpacked

    def fails(*_):
        raise cv2.error("too many pixels")

    monkeypatch.setattr(module.cv2, "imdecode", fails)
    assert client.post("/frame/session-a", data=jpeg(people[0][:10]), **LOCAL).status_code == 400
    assert not app._sessions


def test_a_batch_that_failed_is_said_once(client, app, people):
    app.shots.failure = UserError("no memory was left")
    told = client.post("/frame/session-f", data=jpeg(people[0]), **LOCAL)
    assert (told.status_code, told.json["error"]) == (400, "no memory was left")
    assert client.post("/frame/session-f", data=jpeg(people[0]), **LOCAL).status_code == 200
    client.post("/end/session-f", **LOCAL)


def test_frames_of_no_use_are_refused(client, app, people):
    assert client.post("/frame/session-a", data=b"no picture", **LOCAL).status_code == 400
    assert client.post("/frame/session-a", data=b"", **LOCAL).status_code == 400
    assert client.post("/frame/session-a", data=jpeg(people[0])[:200], **LOCAL).status_code == 400
    wide = np.zeros((10, 1700, 3), np.uint8)
    assert client.post("/frame/session-a", data=jpeg(wide), **LOCAL).status_code == 400
    large = client.post("/frame/session-a", data=b"x" * (module.FRAME_BYTES + 1), **LOCAL)
    assert (large.status_code, large.json["error"][:22]) == (413, "Expected at most 2 MB,")
    assert client.post("/frame/..", data=jpeg(people[0]), **LOCAL).status_code == 404
    assert not app._sessions  # none of them took a webcam's place
    assert client.post("/frame/session-a", data=jpeg(people[0]), **LOCAL).status_code == 200
    with app._sessions["session-a"].lock:  # a second frame while the first is worked on does not queue
        assert client.post("/frame/session-a", data=jpeg(people[0]), **LOCAL).status_code == 503


def test_other_sites_and_names_are_refused(client):
    assert client.get("/", base_url="http://evil.example:8000").status_code == 403
    assert client.get("/", base_url="http://localhost:8000").status_code == 200
    theirs = client.post("/photo", data=b"x", headers={"Origin": "https://evil.example"}, **LOCAL)
    assert theirs.status_code == 403
    lied = client.post("/photo", data=b"x", headers={"Sec-Fetch-Site": "same-site"}, **LOCAL)
    assert lied.status_code == 403
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}, **LOCAL).status_code == 200  # by a link
    proxied = {"Origin": "https://faces.example", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/photo", data=b"x", headers=proxied, **LOCAL).status_code == 400
    own = client.post("/photo", data=b"x", headers={"Origin": "http://127.0.0.1:8000"}, **LOCAL)
    assert own.status_code == 400
    for broken in ("http://[", "null"):
        assert client.post("/photo", data=b"x", headers={"Origin": broken}, **LOCAL).status_code == 403
    assert client.get("/elsewhere", **LOCAL).status_code == 404


@contextlib.contextmanager
def served(app):
    server = make_app_server(app, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.port
    server.shutdown()
    thread.join(10)


def test_a_port_that_is_served_already_is_said(app):
    with served(app) as port, pytest.raises(UserError, match="cannot be served"):
        make_app_server(app, port=port)


def test_an_upload_in_chunks_has_its_limit_too(app, people, monkeypatch):
    frame = jpeg(people[0])
    with served(app) as port:
        for most, status in ((len(frame), 200), (len(frame) - 1, 413)):
            monkeypatch.setattr(module, "FRAME_BYTES", most)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.request("POST", "/frame/in-chunks", body=iter([frame[:1000], frame[1000:]]), encode_chunked=True)
            assert connection.getresponse().status == status
            connection.close()


def test_an_upload_that_never_ends_keeps_no_thread(app, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_UPLOAD", 0.5)
    with served(app) as port, socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(f"POST /photo HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 9999\r\n\r\n".encode())
        answer, ends = b"", time.monotonic() + 10
        slow.settimeout(0.1)
        while not answer and time.monotonic() < ends:
            with contextlib.suppress(TimeoutError):
                slow.sendall(b"x")
                answer = slow.recv(1000)
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_taken_port_is_one_line(light_run, app, capsys):
    with served(app) as port:
        assert cli.main(["app", "--port", str(port), "--model", str(light_run.folder)]) == 2
        assert f"127.0.0.1:{port} cannot be served" in capsys.readouterr().err
        assert cli.main(["app", "--port", "99999", "--model", str(light_run.folder)]) == 2
        assert "between 0 and 65535" in capsys.readouterr().err


def test_ctrl_c_is_how_the_page_ends(shots, monkeypatch, capsys):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "ShotPredictor", lambda *_, **__: contextlib.nullcontext(shots))
    monkeypatch.setattr(module, "Predictor", lambda *_: None)
    monkeypatch.setattr(module.BaseWSGIServer, "serve_forever", interrupted)
    assert cli.main(["app", "--port", "0"]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out


ON_PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(pipes[0], 3), os.dup2(pipes[1], 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads the protocol from its file descriptor 3 and answers on 4."""


class Chromium:
    """A headless browser, told what to do over pipes by the DevTools protocol."""

    def __init__(self, folder, *flags):
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        words = [
            shutil.which("chromium") or shutil.which("chromium-browser"),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--remote-debugging-pipe", f"--user-data-dir={folder}", "--window-size=1100,900", *flags),
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_PIPES, str(to_browser), str(from_browser), *words],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers, self._rest, self._session = itertools.count(1), b"", None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def __call__(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                part = os.read(self._in, 1 << 16)
                assert part, "the browser has gone"
                self._rest += part
            answer, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def value(self, script):
        result = self("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, script, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.value(script):
                return value
            time.sleep(0.2)
        raise AssertionError(f"still not: {script}; the page says {self.value('document.body.innerText')}")

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))

    def close(self):
        self._process.terminate()
        self._process.wait(10)
        os.close(self._in)
        os.close(self._out)


@pytest.fixture
def browser(people, tmp_path):
    """Chromium whose webcam shows the clip of two people, over and over."""
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("chromium is not installed")
    film = tmp_path / "webcam.mjpeg"
    film.write_bytes(b"".join(jpeg(frame) for frame in [*people, *people[::-1]]))
    browser = Chromium(
        tmp_path / "profile",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-video-capture={film}",
    )
    yield browser
    browser.close()


WATCHED = """
const opened = [], asked = [];
const theirs = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async wanted => {  // as slow as somebody who reads what the browser asks
  const stream = await theirs(wanted);
  await new Promise(done => setTimeout(done, 300));
  opened.push(stream);
  return stream;
};
window.fetch = () => new Promise((done, fail) => asked.push({ done, fail }));
const face = { box: [0, 0, 1, 1], probabilities: {} };
const faces = count => Response.json({ faces: Array(count).fill(face), latency_ms: {} });
const picture = async name => {
  const canvas = new OffscreenCanvas(40, 30);
  canvas.getContext("2d").fillRect(0, 0, 9, 9);
  return new File([await canvas.convertToBlob()], name);
};
const text = name => document.getElementById(name).innerText;
"""
"""What the page asks of the browser and of the server, in the hands of a test."""


def test_the_page_when_things_come_in_another_order(app, browser):
    with served(app) as port:
        browser("Page.navigate", url=f"http://127.0.0.1:{port}/")
        browser.until("document.readyState === 'complete' && !!document.getElementById('tab-live')")
        browser.value(WATCHED)
        assert browser.value("$('file').focus(), document.activeElement.id") == "file"  # by keyboard too

        # The tabs' keys (WAI-ARIA); with Alt, Ctrl or Meta they are the browser's own.
        browser.value("$('tab-photo').focus()")
        for key, chosen in (
            *(("End", "tab-live"), ("End", "tab-live"), ("Home", "tab-photo"), ("Home", "tab-photo")),
            *(("ArrowLeft", "tab-live"), ("ArrowRight", "tab-photo"), ("ArrowRight", "tab-live"), ("a", "tab-live")),
            ("ArrowLeft", "tab-photo"),
        ):
            event = f"new KeyboardEvent('keydown', {{ key: '{key}', cancelable: true }})"
            scrolls = browser.value(f"document.activeElement.dispatchEvent({event})")
            assert scrolls == (key == "a")
            at = "[document.activeElement.id, document.querySelector('[aria-selected=true]').id]"
            assert browser.value(at) == [chosen, chosen]
        event = "new KeyboardEvent('keydown', { key: 'ArrowLeft', altKey: true })"
        browser.value(f"document.activeElement.dispatchEvent({event})")
        assert browser.value("document.activeElement.id") == "tab-photo"

        # The answer to the photo before comes after that to the newest one.
        browser.value("(async () => { show(await picture('a.png')); show(await picture('b.png')); })()")
        browser.until("asked.length === 2")
        browser.value("asked[1].done(faces(2))")
        browser.until("text('photo-said') === 'b.png: 2 faces'")
        browser.value("asked[0].done(faces(1)), new Promise(done => setTimeout(done, 100))")
        assert browser.value("[text('photo-said'), $('photo-faces').children.length]") == ["b.png: 2 faces", 2]
        # One that cannot be shown, or a server that has gone: the picture before does not stay beside the error.
        browser.value("void show(new File(['no picture'], 'c.jpg'))")
        browser.until("text('photo-said').startsWith('c.jpg: The browser cannot show')")
        assert browser.value("$('photo-canvas').hidden && !$('photo-hint').hidden")
        browser.value("void picture('d.png').then(show)")
        browser.until("asked.length === 3")
        browser.value("asked[2].fail(new TypeError('Failed to fetch'))")
        browser.until("text('photo-said').startsWith('d.png: The server does not answer')")

        # Stopped, by the button or by another tab, while the browser asks: the webcam does not stay on.
        for stop in ("$('start').click()", "$('tab-photo').click()"):
            browser.value("opened.length = 0, $('tab-live').click(), $('start').click()")
            browser.value(stop)
            browser.until("opened.length === 1 && opened[0].getTracks()[0].readyState === 'ended'")
        # Unplugged: it is said, and the last picture is not looked at over and over.
        browser.value("opened.length = 0, asked.length = 0, $('tab-live').click(), $('start').click()")
        browser.until("asked.length === 1")
        browser.value("opened[0].getTracks()[0].dispatchEvent(new Event('ended'))")
        assert "plugged in" in browser.value("text('live-said')")
        browser.value("asked[0].done(faces(1)), new Promise(done => setTimeout(done, 100))")
        assert browser.value("[asked.length, text('start')]") == [1, "Start the webcam"]


CHANGED = """(() => {  // pixels of the overlay in the colours of faces 1 and 2
  const canvas = document.getElementById(NAME), data = canvas.getContext("2d").getImageData(0, 0, canvas.width,
    canvas.height).data, own = [[0, 114, 178], [213, 94, 0]], seen = [0, 0];
  for (let at = 0; at < data.length; at += 4) own.forEach((colour, which) => {
    if (colour.every((value, channel) => Math.abs(value - data[at + channel]) < 12)) seen[which]++; });
  return seen;
})()"""


def test_the_page_in_a_browser(app, browser, people, tmp_path, monkeypatch):
    """Live: the overlay shows the two faces of the webcam. Photo: a file that is chosen, its boxes and bars."""
    # On a busy machine seconds pass between two frames: tracks that are remembered longer do not mind.
    monkeypatch.setattr(module, "Tracker", functools.partial(Tracker, remember=60))
    app._sessions.clear()
    with served(app) as port:
        browser("Page.navigate", url=f"http://127.0.0.1:{port}/")
        browser.until("document.readyState === 'complete' && !!document.getElementById('tab-live')")
        browser.value("document.getElementById('tab-live').click()")
        browser.value("document.getElementById('start').click()")
        cards = "[...document.querySelectorAll('#live-faces .face')]"
        browser.until(f"{cards}.length === 2 && {cards}.every(card => card.querySelector('progress'))")
        assert browser.value(f"{cards}.map(card => card.querySelector('h2').innerText.split(':')[0])") == ["1", "2"]
        assert min(browser.value(CHANGED.replace("NAME", "'live-canvas'"))) > 200
        assert "2 faces" in browser.value("document.getElementById('live-pace').innerText")
        browser.screenshot(tmp_path / "live.png")
        browser.value("document.getElementById('start').click()")
        browser.until("document.querySelectorAll('#live-faces .face').length === 0")
        end = time.monotonic() + 10
        while app._sessions and time.monotonic() < end:
            time.sleep(0.05)
        assert not app._sessions  # the page told that it is done

        browser.value("document.getElementById('tab-photo').click()")
        photo = tmp_path / "people.png"
        photo.write_bytes(png(people[0]))
        root = browser("DOM.getDocument")["root"]["nodeId"]
        field = browser("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        browser("DOM.setFileInputFiles", nodeId=field, files=[str(photo)])
        browser.until("document.querySelectorAll('#photo-faces .face').length === 2")
        assert min(browser.value(CHANGED.replace("NAME", "'photo-canvas'"))) > 200
        titles = browser.value("[...document.querySelectorAll('#photo-faces h2')].map(title => title.innerText)")
        assert all(re.fullmatch(r"\d: (Male|Female) \d+ ± \d+", title) for title in titles)
        browser.screenshot(tmp_path / "photo.png")
    kept = os.environ.get("TFFACE_SCREENSHOTS")
    if kept:
        for name in ("live.png", "photo.png"):
            shutil.copy(tmp_path / name, kept)
