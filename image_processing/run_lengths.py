"""Binary masks as lengths of runs: as transformers' post-processing writes them, and as COCO's files do."""

from typing import Any

import numpy as np


def run_lengths(mask: np.ndarray) -> list[int]:
    """Transformers' run-length encoding of a mask `(H, W)`: start (counted from 1, row by row) and length of each
    run. No COCO tool reads it."""
    edges = np.flatnonzero(np.diff(np.pad(mask.flatten().astype(np.int8), 1))) + 1
    edges[1::2] -= edges[::2]
    return edges.tolist()


def coco_run_lengths(pixels: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding of a mask.

    Args:
        pixels: `(h, w)` bool, a part of the mask outside of which it is empty.
        top, left: where the part lies.
        size: height and width of the whole mask.
    Returns:
        `size` `[height, width]`, and `counts`: lengths of the runs of pixels outside and inside of the mask, in
        turns, column by column, the first one outside and possibly 0.
    """
    steps = np.diff(np.pad(pixels.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    ends = [(left + column) * size[0] + top + row for column, row in (np.nonzero(steps > 0), np.nonzero(steps < 0))]
    edges = np.stack(ends, axis=1).flatten()
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run that goes on at the top of the next column
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(edges, prepend=0, append=size[0] * size[1])
    return {"size": list(size), "counts": counts[: len(counts) - (len(counts) > 1 and counts[-1] == 0)].tolist()}


def compressed(encoding: dict[str, Any]) -> dict[str, Any]:
    """The same run-length encoding with `counts` as text, which COCO's results files hold.

    A number is the difference to the one two before, but for the first three, in groups of five bits, the lowest
    first. A character is 48 plus a group, plus 32 unless it is the number's last.
    """
    counts = encoding["counts"]
    text = []
    for index, count in enumerate(counts):
        rest = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group, rest = rest & 31, rest >> 5
            more = rest != (-1 if group & 16 else 0)  # the highest bit of the last group is the number's sign
            text.append(chr(48 + group + 32 * more))
    return {**encoding, "counts": "".join(text)}
