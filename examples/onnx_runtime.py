"""Segments an image with an exported model: NumPy, Pillow and onnxruntime, no PyTorch.

`python examples/onnx_runtime.py photo.jpg model.onnx` writes `photo_labels.png` (pixel value = class id) where it is
started. Files of `scripts/export_onnx.py`, with or without processing in the graph; all else is read from the file.
Images of other bands than RGB, or of more than 8 bits, are NumPy arrays (height, width, bands): `field.npy`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def resized(maps, size):
    """Bilinear `(N, h, w)` to `(N, height, width)` of a size (width, height), as PyTorch does it."""
    scale = (maps.shape[2] / size[0], 0, 0, 0, maps.shape[1] / size[1], 0)
    return np.stack([Image.fromarray(plane).transform(tuple(size), 0, scale, 2) for plane in maps])  # 0: affine


def class_scores(classes, masks):
    """Sums over queries of class times mask probability, of logits `(Q, K+1)` and `(Q, h, w)`."""
    probs = np.exp(classes - classes.max(1, keepdims=True))
    return np.tensordot((probs / probs.sum(1, keepdims=True))[:, :-1], 1 / (1 + np.exp(-masks)), (0, 0))


def window_scores(run, batch, side, stride):
    """Mean class scores of the windows over an image that is no smaller."""
    height, width = batch.shape[2:]
    total, count = 0, np.zeros((height, width), np.float32)
    for top in [*range(0, height - side, stride), height - side]:
        for left in [*range(0, width - side, stride), width - side]:
            classes, masks = (output[0] for output in run(batch[..., top : top + side, left : left + side]))
            borders = ((0, 0), (top, height - top - side), (left, width - left - side))
            total = total + np.pad(class_scores(classes, resized(masks, (side, side))), borders)
            count[top : top + side, left : left + side] += 1
    return total / count


def scaled(image, low, high):
    """Numbers from `low` to `high` as 0 to 255: 8 bits where all come out whole."""
    image = np.clip((image.astype(float) - low) * 255 / (high - low), 0, 255)
    return image.astype(np.float32 if (image % 1).any() else np.uint8)


def segment(session, metadata, image):
    """The label map of an image (H, W, C), by a file without processing in the graph. Sizes are (width, height)."""
    rule, sizes = json.loads(metadata["processor"]), json.loads(metadata["sizes"])
    windows = json.loads(metadata.get("windows", "null"))
    image_size = image.shape[1::-1]
    size, edges, pad = np.array(image_size, float), rule["size"], rule["pad_size"]
    if rule["do_resize"] and "shortest_edge" in edges:
        size *= min(edges["shortest_edge"] / size.min(), edges.get("longest_edge", np.inf) / size.max())
    elif rule["do_resize"]:
        size = np.array([edges["width"], edges["height"]], float)
    canvas = np.array([pad["width"], pad["height"]]) if pad else np.inf
    size = np.maximum(1, np.floor(size * np.min(canvas / size, initial=1) + 0.5)).astype(int)
    if windows:
        canvas = np.maximum(size, windows["side"])
    elif not pad:
        canvas = -(-size // sizes["multiple_of"]) * sizes["multiple_of"]
    if (canvas < (sizes["width"], sizes["height"])).any():
        sys.exit(f"the image becomes {canvas[0]}x{canvas[1]}, this file takes {sizes['width']}x{sizes['height']} on")
    image = scaled(image, *rule["intensity_range"]) if "intensity_range" in rule else image
    bands = [Image.fromarray(image[..., band]).resize(size, rule["resample"]) for band in range(image.shape[2])]
    pixels = np.stack([np.asarray(band) for band in bands], axis=2) * rule["rescale_factor"]
    batch = np.zeros((1, len(bands), canvas[1], canvas[0]), np.float32)
    batch[0, :, : size[1], : size[0]] = ((pixels - rule["image_mean"]) / rule["image_std"]).transpose(2, 0, 1)

    def run(pixels):
        return session.run(None, {"pixel_values": pixels})

    if windows:
        scores = window_scores(run, batch, **windows)[:, : size[1], : size[0]]
    else:
        *classes, maps = (output[0] for output in run(batch))  # SeMask has class scores, the others masks of queries
        maps = resized(maps, canvas)[:, : size[1], : size[0]]
        scores = class_scores(classes[0], maps) if classes else maps
    return resized(scores, image_size).argmax(0)


if len(sys.argv) != 3:
    sys.exit(__doc__)
image_file, model_file = sys.argv[1:]
session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
if metadata["task"] != "semantic":
    sys.exit(f"{model_file} is of an {metadata['task']} model: this example makes maps of classes, no segments")
names = json.loads(metadata["id2label"])
if image_file.endswith(".npy"):
    image = np.load(image_file)
else:
    image = np.array(ImageOps.exif_transpose(Image.open(image_file)).convert("RGB"))
whole, (taken,) = metadata["with_processing"] == "true", session.get_inputs()
deep, bands = "intensity_range" in json.loads(metadata["processor"]), taken.shape[2 if whole else 1]
if image.shape[2:] != (bands,) or not (deep or image.dtype == np.uint8):
    depth = "" if deep else " of 8 bits"
    sys.exit(f"{image_file}: {image.dtype} of shape {image.shape}, the model reads {bands} bands{depth}")
if whole:
    labels = session.run(["labels"], {taken.name: image.astype(np.float32) if deep else image})[0]
else:
    labels = segment(session, metadata, image)
Image.fromarray(labels.astype(np.uint8 if len(names) <= 256 else np.int32)).save(f"{Path(image_file).stem}_labels.png")
for label, count in zip(*np.unique(labels, return_counts=True)):
    print(f"{names[str(label)]}: {100 * count / labels.size:.1f} %")
