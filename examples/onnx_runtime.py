"""Segments a picture with an exported model: NumPy, Pillow and onnxruntime, no PyTorch.

`python examples/onnx_runtime.py photo.jpg model.onnx` writes `photo_labels.png` (pixel value = class id) where it is
started. Files of `scripts/export_onnx.py`, with or without processing in the graph; all else is read from the file.
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


def segment(session, rule, sizes, image):
    """The label map of a picture, by a file without processing in the graph. Sizes are (width, height)."""
    size, edges, pad = np.array(image.size, float), rule["size"], rule["pad_size"]
    if rule["do_resize"] and "shortest_edge" in edges:
        size *= min(edges["shortest_edge"] / size.min(), edges.get("longest_edge", np.inf) / size.max())
    elif rule["do_resize"]:
        size = np.array([edges["width"], edges["height"]], float)
    canvas = np.array([pad["width"], pad["height"]]) if pad else np.inf
    size = np.maximum(1, np.floor(size * np.min(canvas / size, initial=1) + 0.5)).astype(int)
    canvas = canvas if pad else -(-size // sizes["multiple_of"]) * sizes["multiple_of"]
    if (canvas < (sizes["width"], sizes["height"])).any():
        sys.exit(f"the picture becomes {canvas[0]}x{canvas[1]}, this file takes {sizes['width']}x{sizes['height']} on")
    pixels = np.asarray(image.resize(size, rule["resample"])) * rule["rescale_factor"]
    batch = np.zeros((1, 3, canvas[1], canvas[0]), np.float32)
    batch[0, :, : size[1], : size[0]] = ((pixels - rule["image_mean"]) / rule["image_std"]).transpose(2, 0, 1)
    classes, masks = session.run(["class_queries_logits", "masks_queries_logits"], {"pixel_values": batch})
    probs = np.exp(classes[0] - classes[0].max(1, keepdims=True))
    masks = resized(masks[0], canvas)[:, : size[1], : size[0]]
    masks = masks if rule["task"] == "semantic" else resized(masks, image.size)
    scores = np.tensordot((probs / probs.sum(1, keepdims=True))[:, :-1], 1 / (1 + np.exp(-masks)), (0, 0))
    return resized(scores, image.size).argmax(0)


if len(sys.argv) != 3:
    sys.exit(__doc__)
image_file, model_file = sys.argv[1:]
session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
metadata = session.get_modelmeta().custom_metadata_map
rule, sizes, names = (json.loads(metadata[name]) for name in ("processor", "sizes", "id2label"))
image = ImageOps.exif_transpose(Image.open(image_file)).convert("RGB")
if metadata["with_processing"] == "true":
    labels = session.run(["labels"], {"picture": np.asarray(image)})[0]
else:
    labels = segment(session, rule, sizes, image)
Image.fromarray(labels.astype(np.uint8 if len(names) <= 256 else np.int32)).save(f"{Path(image_file).stem}_labels.png")
for label, count in zip(*np.unique(labels, return_counts=True)):
    print(f"{names[str(label)]}: {100 * count / labels.size:.1f} %")
