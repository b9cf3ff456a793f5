"""Ask a model that TensorFlow Serving holds, over REST or gRPC: faces are found and aligned here, answered there."""

from __future__ import annotations

import base64
import functools
import http.client
import io
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tfface.data.pipeline import in_groups
from tfface.errors import UserError
from tfface.faces.crops import encode
from tfface.faces.detect import Detector
from tfface.faces.photos import find_photos, orientation, read_photo
from tfface.online.capture import without_password
from tfface.recipes import RECIPES
from tfface.serving.predictor import FaceAttributes, Predictor, check_crops, face_detector

FACES_AT_ONCE = 32
PHOTOS_AT_ONCE = 8

LONGEST_TIMEOUT = 86_400.0
"""Seconds, a day: sockets know no infinity."""

ONLY_OUTPUT = {
    "card": "card",
    **dict.fromkeys(("embeddings", "jpeg_embeddings", "serving_default", "jpeg"), "embedding"),
}
"""Signature -> its one output, where it has one: of the last two that of a network that tells people apart, or "age" of
one that says nothing else and gives each face a number."""


def connect(
    url: str, name: str = "compact", version: int | None = None, label: str = "", timeout: float = 30.0
) -> Server:
    """The server behind an address; nothing is sent yet.

    Args:
        url: `http://host:8501` or `https://user:password@host` for REST; `host:8500` or `grpc://host:8500` for gRPC,
            `grpcs://host:8500` for gRPC over TLS. Of an authority of your own, SSL_CERT_FILE names the certificate.
        name: name of the model.
        version: number of its version; None: the newest that is loaded.
        label: label of its version, such as "stable"; not together with `version`.
        timeout: seconds that an answer may take, > 0, at most a day.

    Raises:
        UserError: an address of another kind, a password over gRPC, a version and a label, or a version or a timeout
            out of range.
    """
    scheme, _, rest = url.rpartition("://")
    place = rest.rstrip("/")
    try:
        sound = bool(place) and "/" not in place and " " not in place and urllib.parse.urlsplit(f"//{place}").port != 0
    except ValueError:  # brackets without their like, or a port that is no number
        sound = False
    if scheme not in ("", "grpc", "grpcs", "http", "https") or not sound:
        raise UserError(
            "URL must be http://HOST:8501 (REST) or HOST:8500 (gRPC), over TLS https:// or grpcs://, without a path "
            f"behind it. Received: {without_password(url)}."
        )
    if version is not None and label:
        raise UserError(f"Name a version or a label, not both. Received: version {version}, label {label}.")
    if version is not None and not 0 <= version < 1 << 63:
        raise UserError(f"A version is a number from 0 to {(1 << 63) - 1}. Received: {version}.")
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise UserError(
            f"The timeout must be more than 0 seconds and at most {LONGEST_TIMEOUT:g}. Received: {timeout:g}."
        )
    kind = Rest if scheme.startswith("http") else Grpc
    if kind is Grpc and "@" in place:
        raise UserError("Over gRPC no password is sent: name HOST:8500 alone, or ask by http:// or https://.")
    return kind(place if scheme in ("", "grpc") else f"{scheme}://{place}", name, version, label, timeout)


class Server:
    """A model on a server. `Rest` and `Grpc` send the question; the answers and the errors are the same.

    Args:
        address: as `connect` took it apart.
        name, version, label, timeout: see `connect`.
    """

    def __init__(self, address: str, name: str, version: int | None, label: str, timeout: float):
        self.address, self.name, self.version, self.label, self.timeout = address, name, version, label, timeout
        self.shown = without_password(address)

    def predict(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of a signature.

        Args:
            signature: its name.
            inputs: its inputs by name; strings as arrays of bytes.

        Returns:
            Its outputs by name; strings as arrays of str.

        Raises:
            UserError: the server is absent or too slow, or has no such model, version or signature.
        """
        raise NotImplementedError

    def card(self) -> dict:
        """What the model says of itself: recipe, outputs, landmarks of its crops, embedding.

        Raises:
            UserError: as `predict`, or what answers is no card.
        """
        outputs = self.predict("card", {"query": np.array([b""], object)})
        self.check("card", outputs, 1, ("card",))
        try:
            card = json.loads(outputs["card"][0])
            card["recipe"]["recipe"], card["landmarks"]
        except (ValueError, LookupError, TypeError) as error:
            raise self.strange("card", "its card is no JSON object with recipe and landmarks") from error
        return card

    def check(self, signature: str, outputs: Mapping[str, np.ndarray], count: int, needed: Sequence[str] = ()) -> None:
        """Looks at an answer before it is used.

        Args:
            signature: what was asked.
            outputs: what came.
            count: rows that each output must have.
            needed: outputs that must be there.

        Raises:
            UserError: an output is missing, has other rows than were asked for, or holds no numbers where it should.
        """
        for name in needed:
            if name not in outputs:
                raise self.strange(signature, f"the output {name} is missing; received: {', '.join(outputs) or 'none'}")
        for name, values in outputs.items():
            if values.shape[:1] != (count,):
                raise self.strange(signature, f"{name} has shape {values.shape}, expected {count} rows")
            sides = {"age": 1, "age_spread": 1, "embedding": 2}.get(name, 2 if name.endswith("_probabilities") else 0)
            if not sides:
                continue
            if values.ndim != sides or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
                raise self.strange(signature, f"{name} is not {'' if sides == 1 else 'a row of '}numbers, one a face")
            task = name.removesuffix("_probabilities")
            classes = outputs.get(f"{task}_classes")
            if task != name and (classes is None or classes.shape != values.shape):
                raise self.strange(signature, f"{task}_classes does not name the columns of {name}")

    def strange(self, signature: str, reason: str) -> UserError:
        """The error for an answer that is none of a model of tfface."""
        return UserError(
            f"The {self.wanted()} at {self.shown} answered what no model of tfface answers (signature {signature}): "
            f"{reason}. Was it published by `tfface export --bundle`?"
        )

    def wanted(self) -> str:
        """The model that is asked for, in words."""
        part = f" version {self.version}" if self.version is not None else f" label {self.label}" * bool(self.label)
        return f"model {self.name}{part}"

    def _absent(self, reason) -> UserError:
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            reason = f"{reason}; of an authority of your own, name the certificate in SSL_CERT_FILE"
        return UserError(
            f"No TensorFlow Serving answers at {self.shown} ({reason}). Expected REST at http://HOST:8501 or gRPC at "
            "HOST:8500, over TLS https:// or grpcs://; check the address and that the server runs."
        )

    def _late(self) -> UserError:
        return UserError(
            f"{self.shown} did not answer within {self.timeout:g} s. Give it longer with --timeout, or see whether "
            "it is overloaded."
        )

    def _refused(self, signature: str, missing: bool, said: str) -> UserError:
        said = " ".join(said.split())
        if missing:
            return UserError(
                f"{self.shown} has no {self.wanted()}, or has not loaded it yet; name another with --name. "
                f"It said: {said}"
            )
        # Names of nodes in other refusals hold the word too.
        if re.search(r"signature (key|name)|match signature", said, re.IGNORECASE):
            return UserError(
                f"The {self.wanted()} at {self.shown} has no signature {signature} of this kind; was it published by "
                f"`tfface export --bundle`? It said: {said}"
            )
        return UserError(f"{self.shown} refused the request for {self.wanted()}, signature {signature}: {said}")


class Rest(Server):
    """TensorFlow Serving's REST interface, in columns: every input and output one array."""

    def _absent(self, reason):
        scheme, _, place = self.address.partition("://")
        host = place.rpartition("@")[2]
        proxy = urllib.request.getproxies().get(scheme)
        if proxy and not urllib.request.proxy_bypass(host):
            name = urllib.parse.urlsplit(f"//{host}").hostname
            proxy = without_password(proxy)
            reason = f"{reason}; asked through the proxy {proxy} of {scheme}_proxy: no_proxy={name} goes past it"
        return super()._absent(reason)

    def predict(self, signature, inputs):
        scheme, _, place = self.address.partition("://")
        login, _, host = place.rpartition("@")
        label = urllib.parse.quote(self.label, safe="")
        part = f"/versions/{self.version}" if self.version is not None else f"/labels/{label}" * bool(label)
        request = urllib.request.Request(
            f"{scheme}://{host}/v1/models/{urllib.parse.quote(self.name, safe='')}{part}:predict",
            json.dumps(
                {"signature_name": signature, "inputs": {key: _plain(value) for key, value in inputs.items()}}
            ).encode(),
            {"Content-Type": "application/json"},
        )
        if login:  # of a proxy before the server, which knows none; not for where it may send us on to
            basic = base64.b64encode(urllib.parse.unquote_to_bytes(login)).decode()
            request.add_unredirected_header("Authorization", f"Basic {basic}")
        end = time.monotonic() + self.timeout
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                outputs = json.loads(_read_until(answer, end))["outputs"]
        except urllib.error.HTTPError as error:
            # The standard library follows some, and asks by GET there.
            if elsewhere := error.headers.get("Location") or (error.url != request.full_url and error.url):
                raise self._absent(f"it sends on to {without_password(elsewhere)}") from error
            try:
                said = str(json.loads(_read_until(error, end))["error"])
            except TimeoutError as late:
                raise self._late() from late
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
                raise self._absent(f"HTTP {error.code} {error.reason}, not TensorFlow Serving's words") from error
            if error.code == 504:
                raise self._late() from error
            raise self._refused(signature, error.code == 404, said) from error
        except TimeoutError as error:
            raise self._late() from error
        except urllib.error.URLError as error:
            raise (self._late() if isinstance(error.reason, TimeoutError) else self._absent(error.reason)) from error
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise self._absent(f"what answers does not speak its REST: {type(error).__name__}") from error
        if not isinstance(outputs, dict):  # of a signature with one output, the bare array
            name = ONLY_OUTPUT.get(signature, signature)
            numbers = isinstance(outputs, list) and not any(isinstance(row, list) for row in outputs)
            outputs = {"age" if name == "embedding" and numbers else name: outputs}
        try:
            return {key: np.asarray(value) for key, value in outputs.items()}
        except ValueError as error:
            raise self.strange(signature, "rows of one output differ in length") from error


def _read_until(answer, end: float) -> bytes:
    """The body of an HTTP answer; a socket's own timeout begins anew with each byte.

    Raises:
        TimeoutError: it is not whole at `end`, `time.monotonic()` seconds.
    """
    parts = []
    while part := answer.read1(1 << 16):
        parts.append(part)
        if time.monotonic() > end:
            raise TimeoutError
    return b"".join(parts)


class Grpc(Server):
    """TensorFlow Serving's gRPC interface."""

    @functools.cached_property
    def _stub(self):
        import grpc
        from tensorflow_serving.apis import prediction_service_pb2_grpc

        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        scheme, _, place = self.address.rpartition("://")
        if scheme == "grpcs":
            channel = grpc.secure_channel(place, grpc.ssl_channel_credentials(_authority()), unlimited)
        else:
            channel = grpc.insecure_channel(place, unlimited)
        return prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def predict(self, signature, inputs):
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self.name, signature
        if self.version is not None:
            request.model_spec.version.value = self.version
        elif self.label:
            request.model_spec.version_label = self.label
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        try:
            answer = self._stub.Predict(request, timeout=self.timeout)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._late() from error
            said = error.details() or error.code().name
            if error.code() == grpc.StatusCode.UNAVAILABLE and "queue" not in said:  # a full queue is a server's word
                raise self._absent(said) from error
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                raise self._absent("what answers does not know PredictionService") from error
            raise self._refused(signature, error.code() == grpc.StatusCode.NOT_FOUND, said) from error
        try:
            arrays = {key: tf.make_ndarray(value) for key, value in answer.outputs.items()}
            return {
                key: np.char.decode(value.astype("S"), "utf-8") if value.dtype == object else value
                for key, value in arrays.items()
            }
        except (ValueError, TypeError, LookupError) as error:  # bytes that are no text, or types that NumPy lacks
            raise self.strange(signature, f"an output cannot be read: {type(error).__name__}") from error


def _authority() -> bytes | None:
    """The certificates that SSL_CERT_FILE names, as OpenSSL reads them for REST; None: gRPC's own."""
    file = os.environ.get("SSL_CERT_FILE")
    if not file:
        return None
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"SSL_CERT_FILE names {file}, which cannot be read ({error.strerror}).") from error
    if b"-----BEGIN CERTIFICATE-----" not in data:  # gRPC would name neither the file nor the reason
        raise UserError(f"SSL_CERT_FILE names {file}, which holds no certificate in PEM.")
    return data


def _plain(value: np.ndarray):
    """An array as JSON: nested lists, bytes as TensorFlow Serving's {"b64": ...}."""
    if value.dtype == object:
        return [{"b64": base64.b64encode(item).decode()} for item in value]
    return value.tolist()


def ask(server: Server, crops: Sequence[bytes], embeddings: bool = False) -> dict[str, np.ndarray]:
    """Outputs of the signature `jpeg`, and of `jpeg_embeddings` where asked for, over any number of crops.

    Args:
        server: from `connect`.
        crops: JPEG or PNG bytes of aligned faces, one at least.
        embeddings: also ask for them.

    Returns:
        Output -> `(n, ...)`.

    Raises:
        UserError: no crops, as `Server.predict`, or what answers is no model of tfface.
    """
    if not len(crops):
        raise UserError("no crops were received, expected one at least")
    parts, shapes = [], {}
    for group in in_groups(crops, FACES_AT_ONCE):
        inputs = {"jpeg": np.array(group, object)}
        part = server.predict("jpeg", inputs)
        server.check("jpeg", part, len(group))
        if not any(name in ("age", "embedding") or name.endswith("_probabilities") for name in part):
            raise server.strange(
                "jpeg", f"neither age, probabilities nor embedding; received: {', '.join(part) or 'none'}"
            )
        if embeddings:
            more = server.predict("jpeg_embeddings", inputs)
            server.check("jpeg_embeddings", more, len(group), ("embedding",))
            part |= more
        before, shapes = shapes, {name: values.shape[1:] for name, values in part.items()}
        if before and before != shapes:
            raise server.strange("jpeg", "one request has other outputs than the one before")
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def served_face(box, score: float, outputs: Mapping[str, np.ndarray]) -> FaceAttributes:
    """One face from its row of every output.

    Args:
        box: x0, y0, x1, y1, pixels.
        score: the detector's.
        outputs: output -> the face's row of it.
    """
    probabilities = {}
    for name in sorted(outputs):
        task = name.removesuffix("_probabilities")
        if task != name:
            probabilities[task] = dict(
                zip(map(str, outputs[f"{task}_classes"]), map(float, outputs[name]), strict=True)
            )
    age, spread = (None if outputs.get(name) is None else float(outputs[name]) for name in ("age", "age_spread"))
    embedding = outputs.get("embedding")
    if embedding is not None:
        embedding = embedding / (np.linalg.norm(embedding) or 1.0)  # several shots may have been averaged
    return FaceAttributes(tuple(map(float, box)), float(score), probabilities, age, spread, embedding)


class RemotePredictor(Predictor):
    """A `Predictor` whose network is on a server; how faces are aligned for it, the model's card says.

    Args:
        server: from `connect`.
        detector: a detector, or the name of one (`tfface.faces.detect.load_detector`).
        embeddings: also ask for embeddings.

    Raises:
        UserError: the server does not answer, no such detector, or faces cannot be aligned as the model wants them.
    """

    def __init__(self, server: Server, detector: str | Detector = "mtcnn", embeddings: bool = False):
        card = server.card()
        self.server, self.embeddings = server, embeddings
        self.landmarks, self.stretch = card["landmarks"], card.get("stretch", 1.0)
        if not self.landmarks:
            raise UserError(
                f"The {server.wanted()} at {server.shown} does not say where its crops have eyes, nose and mouth: "
                "faces in photos cannot be aligned to them. Send aligned crops, with --crops."
            )
        if np.shape(self.landmarks) != (5, 2):
            raise server.strange("card", "its landmarks are not five points")
        recipe = card["recipe"]["recipe"]
        try:
            self.recipe = RECIPES[recipe].from_json(card["recipe"])
        except (LookupError, TypeError, ValueError, UserError) as error:  # no such recipe, or none with such fields
            raise UserError(
                f"The {server.wanted()} at {server.shown} is of a recipe {recipe} that this version of tfface does not "
                "know. Install the version that published it."
            ) from error
        self.detector = face_detector(detector)

    def predict_crops(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of the server for aligned crops, which travel as PNG: it loses nothing.

        Args:
            crops: `(n, height, width, 3)` uint8, of any size, n >= 1.

        Returns:
            Output -> `(n, ...)`.

        Raises:
            UserError: other crops, or as `ask`.
        """
        check_crops(crops)  # of others the server would be sent other pixels
        return ask(self.server, [encode(crop, ".png") for crop in crops], self.embeddings)

    def attributes(self, box, score: float, outputs: dict[str, np.ndarray]) -> FaceAttributes:
        """One face from its row of every output, see `served_face`."""
        return served_face(box, score, outputs)


def predict_photos(server: Server, paths, detector="mtcnn", crops=False, embeddings=False) -> int:
    """Print what a server says of the faces of photos, as `tfface predict --out json` writes it.

    Args:
        server: from `connect`.
        paths: photos, folders or globs.
        detector: name of a detector.
        crops: the photos are aligned crops already: their bytes are sent as they are, but for pictures that EXIF
            turns or that are transparent, which servers would see otherwise.
        embeddings: also print embeddings.

    Returns:
        Exit code: 0 every photo gave faces, 1 some photo has no face, 2 some photo could not be read.
    """
    predictor = None if crops else RemotePredictor(server, detector, embeddings)
    broken = empty = 0
    seen = set()

    def readable():
        nonlocal broken
        for named in paths:
            try:
                for path in find_photos([named]):
                    if path in seen:
                        continue
                    seen.add(path)
                    try:
                        yield path, *_read(path, crops)
                    except UserError as error:
                        broken += 1
                        print(f"tfface: {error}", file=sys.stderr)
            except UserError as error:  # no such path, or an empty folder: the other paths go on
                broken += 1
                print(f"tfface: {error}", file=sys.stderr)

    separator = "[\n"
    try:
        for group in in_groups(readable(), FACES_AT_ONCE if crops else PHOTOS_AT_ONCE):
            if crops:
                outputs = ask(server, [data for _, _, data in group], embeddings)
                rows = [{name: values[row] for name, values in outputs.items()} for row in range(len(group))]
                whole = [(0, 0, photo.shape[1], photo.shape[0]) for _, photo, _ in group]
                found = [[served_face(box, 1.0, row)] for box, row in zip(whole, rows, strict=True)]
            else:
                found = predictor([photo for _, photo, _ in group])
            for (path, _, _), faces in zip(group, found, strict=True):
                if not faces:
                    empty += 1
                    print(f"tfface: no face was found in {path}", file=sys.stderr)
                row = {"photo": str(path), "faces": [face.to_json(embedding=embeddings) for face in faces]}
                print(separator + json.dumps(row), end="", flush=True)
                separator = ",\n"
    finally:  # what a server said before it fell silent is JSON, too
        print("\n]" if separator == ",\n" else "[]", flush=True)
    return 2 if broken else 1 if empty else 0


def _read(path: Path, crop: bool) -> tuple[np.ndarray, bytes]:
    """A photo and, of a crop, the bytes that are sent."""
    if not crop:
        return read_photo(path), b""
    photo = read_photo(path)
    data = path.read_bytes()
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        raise UserError(f"{path} is neither JPEG nor PNG, which the server decodes; convert it, or leave out --crops")
    with Image.open(io.BytesIO(data)) as image:
        if orientation(image) != 1 or image.has_transparency_data:
            data = encode(photo, ".png")
    return photo, data
