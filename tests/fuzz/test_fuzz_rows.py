"""Rows of a data set: an image and a map of one size, or one line; nothing else is opened, asked or waited for."""

import io
import os
import socket
from unittest import mock

import numpy as np
import pytest
from hostile import tried
from hypothesis import given
from hypothesis import strategies as st
from oracles import answered
from PIL import Image

from scripts.data.samples import RowFormat, decode_sample


SECRET = np.full((8, 8, 3), (1, 2, 3), np.uint8)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Name -> path that a row may hold, none of which lies inside its data set."""
    folder = tmp_path_factory.mktemp("private")
    Image.fromarray(SECRET).save(folder / "secret.png")
    os.mkfifo(folder / "fifo.png")
    (folder / "folder.png").mkdir()
    os.symlink(folder / "secret.png", folder / "link.png")
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    port = listener.getsockname()[1]
    yield {
        "secret": str(folder / "secret.png"),
        "link": str(folder / "link.png"),
        "upward": str(folder / ".." / folder.name / "secret.png"),
        "fifo": str(folder / "fifo.png"),
        "folder": str(folder / "folder.png"),
        "device": "/dev/zero",
        "gone": str(folder / "gone.png"),
        "http": f"http://127.0.0.1:{port}/secret.png",
        "https": "https://127.0.0.1/secret.png",
        "file": f"file://{folder}/secret.png",
        "zip": f"zip://secret.png::{folder}/secret.png",
        "relative": "secret.png",
        "long": "x" * 5000,
        "null": "a\0b.png",
        "empty": "",
    }
    listener.close()


def encoded(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def content_of(kind, seed):
    """Bytes that a column of images may hold."""
    pixels = np.random.default_rng(seed).integers(0, 3, (8, 8), dtype=np.uint8)
    whole = encoded(Image.fromarray(pixels))
    return {
        "map": lambda: whole,
        "image": lambda: encoded(Image.fromarray(np.dstack([pixels] * 3))),
        "jpeg": lambda: encoded(Image.fromarray(np.dstack([pixels] * 3)), "JPEG"),
        "wide": lambda: encoded(Image.fromarray(pixels[:4])),
        "cut": lambda: whole[: len(whole) // 2],
        "header": lambda: whole[:16] + (10**6).to_bytes(4, "big") * 2 + whole[24:],
        "noise": lambda: np.random.default_rng(seed).bytes(200),
        "html": lambda: b"<!DOCTYPE html><html><body>404</body></html>",
        "none": lambda: b"",
        "gif": lambda: encoded(Image.fromarray(pixels), "GIF"),
        "16 bits": lambda: encoded(Image.fromarray(pixels.astype(np.uint16))),
        "cmyk": lambda: encoded(Image.fromarray(np.dstack([pixels] * 4), "CMYK"), "TIFF"),
    }[kind]()


CONTENTS = ["map", "image", "jpeg", "wide", "cut", "header", "noise", "html", "none", "gif", "16 bits", "cmyk"]
PLACES = ["secret", "link", "upward", "fifo", "folder", "device", "gone", "http", "https", "file", "zip", "relative",
          "long", "null", "empty"]  # fmt: skip
VALUES = st.one_of(
    st.tuples(st.just("bytes"), st.sampled_from(CONTENTS)),
    st.tuples(st.just("bytes"), st.sampled_from(["map", "image"])),
    st.tuples(st.just("path"), st.sampled_from(PLACES)),
    st.tuples(
        st.just("other"), st.sampled_from([None, 3, "text", "http://127.0.0.1/a", "secret", [], {}, {"bytes": "text"}])
    ),
)


@tried(250)
@given(VALUES, VALUES, st.integers(0, 9), st.integers(1, 4), st.booleans())
def test_a_row_is_read_or_refused(places, image, label, seed, num_labels, reduced):
    def value(drawn):
        kind, what = drawn
        if kind == "bytes":
            return {"bytes": content_of(what, seed), "path": None}
        if what == "secret":
            return {"bytes": None, "path": places[what]} if kind == "path" else places[what]
        return {"bytes": None, "path": places[what]} if kind == "path" else what

    row = {"image": value(image), "label": value(label)}
    with mock.patch.object(socket.socket, "connect", side_effect=OSError("refused")) as connect:
        found, refusal = answered(lambda: decode_sample(row, RowFormat(do_reduce_labels=reduced), num_labels, 0))
    assert not connect.called, "a server was asked"
    if refusal:
        return
    pixels, ids, _ = found
    assert pixels.shape[0] == 3 and pixels.shape[1:] == ids.shape
    assert "path" not in (image[0], label[0]), "a file outside of the data set was read"
    allowed = {255, *range(num_labels)} if not reduced else {0, 255, *range(1, num_labels + 1)}
    assert set(ids.unique().tolist()) <= allowed
