"""Splits of random images and label maps, written as a data set on disk is."""

import io

import datasets
import numpy as np
from PIL import Image


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def write_split(folder, samples):
    """A validation split of (name, image, map); bytes stand for themselves."""
    rows = [
        {"image_id": name, **{k: v if isinstance(v, dict) else png(v) for k, v in (("image", image), ("label", ids))}}
        for name, image, ids in samples
    ]
    kinds = {"image_id": datasets.Value("string"), "image": datasets.Image(), "label": datasets.Image()}
    data = datasets.Dataset.from_list(rows, features=datasets.Features(kinds))
    data.to_parquet(folder / "validation-00000-of-00001.parquet")
    return folder


def random_pixels(rng, height=40, width=56):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def patches(rng, ids, height=40, width=56):
    values = np.array(ids, dtype=np.uint8)[rng.integers(0, len(ids), (height // 8, width // 8))]
    return np.kron(values, np.ones((8, 8), dtype=np.uint8))


def blobs(seed, shape=(24, 33), num_labels=4, cell=5, ignored=True):
    """A map of square patches; 255 among them."""
    rng = np.random.default_rng(seed)
    ids = np.array([*range(num_labels), *([255] if ignored else [])], dtype=np.uint8)
    patches = ids[rng.integers(0, len(ids), (-(-shape[0] // cell), -(-shape[1] // cell)))]
    return np.kron(patches, np.ones((cell, cell), dtype=np.uint8))[: shape[0], : shape[1]]


def samples(count, **broken):
    rng = np.random.default_rng(0)
    made = []
    for number in range(count):
        name = f"p{number}"
        image, ids = random_pixels(rng, 16, 24), patches(rng, range(6), 16, 24)
        if broken.get(name) == "image":
            image = {"bytes": b"no image", "path": None}
        elif broken.get(name) == "sizes":
            ids = ids[:8]
        elif broken.get(name) == "id":
            ids = np.full_like(ids, 77)
        made.append((name, image, ids))
    return made
