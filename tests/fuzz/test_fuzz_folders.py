"""Folders of images and maps: every pair that there is, each read, or one line; nothing in them is changed."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hostile import tried
from hypothesis import given
from hypothesis import strategies as st
from oracles import answered
from PIL import Image

from scripts.data.arguments import DatasetArguments
from scripts.data.images import find_images, read_image
from scripts.data.labelled_dataset import LabelledDataset
from scripts.data.samples import BadSample, decode_sample


NAMES = st.sampled_from(["a", "b", "c.d", "ü", "x y", "deep/a", "A", "-1", "a" * 200, "_b", ".ipynb_checkpoints/a",
                         ".hidden/b", ".c", "__MACOSX/a", "two\nlines"])  # fmt: skip
DAMAGE = ["cut", "empty", "text", "fifo", "link", "broken link", "folder", "loop", "colours"]
KINDS = st.sampled_from(["good"] * 6 + DAMAGE)
ENDINGS = st.sampled_from([".png"] * 6 + [".jpg", ".PNG", ".tif", ".txt", ""])
TREES = st.lists(st.tuples(NAMES, ENDINGS, KINDS), max_size=5, unique_by=lambda entry: entry[:2])


def write_tree(root, entries, mode):
    """Writes the files; what cannot be made twice is left out."""
    root.mkdir()
    pixels = np.random.default_rng(0).integers(0, 3, (8, 8), dtype=np.uint8)
    good = Image.fromarray(pixels if mode == "L" else np.dstack([pixels] * 3))
    for name, ending, kind in entries:
        file = root / f"{name}{ending}"
        if file.exists() or file.is_symlink():
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        form = {".jpg": "JPEG", ".tif": "TIFF"}.get(ending, "PNG")
        if kind == "colours":
            Image.fromarray(np.dstack([pixels, pixels, pixels])).save(file, form)
        elif kind in ("good", "cut"):
            good.save(file, form)
            if kind == "cut":
                file.write_bytes(file.read_bytes()[:40])
        elif kind in ("empty", "text"):
            file.write_text("" if kind == "empty" else "no image")
        elif kind == "fifo":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            good.save(root.parent / "outside.png")
            targets = {"link": root.parent / "outside.png", "broken link": root / "gone.png", "loop": root}
            os.symlink(targets[kind], file)


def listing(root):
    """Every entry and what it holds."""
    return {
        str(file.relative_to(root)): file.read_bytes() if file.is_file() else str(file.lstat().st_mode)
        for file in sorted(root.rglob("*"))
    }


def is_hidden(path):
    return any(part.startswith(".") for part in Path(path).parts)


@tried(120)
@given(TREES, st.one_of(st.none(), TREES))
def test_pairs_are_read_or_refused(images, masks):
    folder = Path(tempfile.mkdtemp())
    try:
        write_tree(folder / "images", images, "RGB")
        write_tree(folder / "masks", images if masks is None else masks, "L")
        before = listing(folder)
        arguments = DatasetArguments(train_images=str(folder / "images"), train_masks=str(folder / "masks"))
        data, refusal = answered(lambda: LabelledDataset(arguments, "train"))
        if not refusal:
            rows, refusal = answered(lambda: list(data.stream))
        if not refusal:
            seen = [row["image_id"] for row in rows]
            assert len(seen) == len(set(seen)) and not any(map(is_hidden, seen))
            for index, row in enumerate(rows):
                try:
                    found, _ = answered(lambda row=row, index=index: decode_sample(row, data.row_format, 3, index))
                except BadSample:
                    continue
                assert found is None or found[0].shape[1:] == found[1].shape == (8, 8)
        assert listing(folder) == before
    finally:
        shutil.rmtree(folder)


@tried(40)
@given(TREES, st.sampled_from(["images", "train", ""]), TREES, st.sampled_from(["masks", "train_labels", ".", "x"]))
def test_a_folder_is_recognised_or_refused(images, images_name, masks, masks_name):
    folder = Path(tempfile.mkdtemp())
    try:
        write_tree(folder / "own", [], "RGB")
        if images_name:
            write_tree(folder / "own" / images_name, images, "RGB")
        if masks_name != ".":
            write_tree(folder / "own" / masks_name, masks, "L")
        before = listing(folder)
        arguments = DatasetArguments(str(folder / "own"), train_val_split=0.5 if len(images) % 2 else None)
        data, refusal = answered(lambda: LabelledDataset(arguments, "train"))
        if not refusal:
            seen = [row["image_id"] for row in data.stream]
            assert seen and len(seen) == len(set(seen)) and not any(map(is_hidden, seen))
            assert all(row["label"]["path"] != row["image"]["path"] for row in data.stream)
        assert listing(folder) == before
    finally:
        shutil.rmtree(folder)


@tried(120)
@given(TREES)
def test_images_are_found_or_refused(entries):
    folder = Path(tempfile.mkdtemp())
    try:
        write_tree(folder / "photos", entries, "RGB")
        found, _ = answered(lambda: find_images([str(folder / "photos")]))
        for file, _ in found or []:
            assert not is_hidden(file.relative_to(folder / "photos"))
            image = read_image(file)
            assert image is None or (image.mode, image.size) == ("RGB", (8, 8))
    finally:
        shutil.rmtree(folder)
