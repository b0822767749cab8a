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


def resized(maps, width, height):
    """Bilinear `(N, h, w)` -> `(N, height, width)`, as PyTorch does it."""
    scale = (maps.shape[2] / width, 0, 0, 0, maps.shape[1] / height, 0)
    planes = (Image.fromarray(plane).transform((width, height), 0, scale, 2) for plane in maps)  # 0: affine
    return np.stack([np.asarray(plane) for plane in planes])


def segment(session, settings, sizes, image):
    """The label map of a picture, by a file without processing in the graph."""
    size = np.array(image.size, float)  # width, height
    if settings["do_resize"] and "shortest_edge" in settings["size"]:
        size *= settings["size"]["shortest_edge"] / size.min()
        size *= min(1, settings["size"].get("longest_edge", np.inf) / size.max())
    elif settings["do_resize"]:
        size = np.array([settings["size"]["width"], settings["size"]["height"]], float)
    if pad := settings["pad_size"]:
        canvas = np.array([pad["width"], pad["height"]])
        size *= min(1, *canvas / size)
    width, height = size = np.maximum(1, np.floor(size + 0.5)).astype(int)
    if not pad:
        canvas = -(-size // sizes["multiple_of"]) * sizes["multiple_of"]
    if canvas[0] < sizes["width"] or canvas[1] < sizes["height"]:
        sys.exit(f"the picture becomes {canvas[0]}x{canvas[1]}, this file takes {sizes['width']}x{sizes['height']} on")
    pixels = np.asarray(image.resize((width, height), settings["resample"]), np.float32) * settings["rescale_factor"]
    pixels = (pixels - np.float32(settings["image_mean"])) / np.float32(settings["image_std"])
    batch = np.zeros((1, 3, canvas[1], canvas[0]), np.float32)
    batch[0, :, :height, :width] = pixels.transpose(2, 0, 1)
    classes, masks = session.run(["class_queries_logits", "masks_queries_logits"], {"pixel_values": batch})
    probs = np.exp(classes[0] - classes[0].max(1, keepdims=True))
    probs = (probs / probs.sum(1, keepdims=True))[:, :-1]
    masks = resized(masks[0], *canvas)[:, :height, :width]
    if settings["task"] != "semantic":
        masks = resized(masks, *image.size)
    return resized(np.tensordot(probs.T, 1 / (1 + np.exp(-masks)), 1), *image.size).argmax(0)


def main(image_file, model_file):
    """Writes the label map and prints each class found with its share of the picture."""
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    settings, sizes, names = (json.loads(metadata[name]) for name in ("processor", "sizes", "id2label"))
    image = ImageOps.exif_transpose(Image.open(image_file)).convert("RGB")
    if session.get_inputs()[0].name == "picture":
        labels = session.run(["labels"], {"picture": np.asarray(image)})[0]
    else:
        labels = segment(session, settings, sizes, image)
    result = Path(f"{Path(image_file).stem}_labels.png")
    Image.fromarray(labels.astype(np.uint8 if len(names) <= 256 else np.int32)).save(result)
    for label, count in sorted(zip(*np.unique(labels, return_counts=True)), key=lambda found: -found[1]):
        print(f"{names[str(label)]}: {100 * count / labels.size:.1f} %")
    print(f"label map in {result}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/onnx_runtime.py PICTURE MODEL.onnx")
    main(*sys.argv[1:])
