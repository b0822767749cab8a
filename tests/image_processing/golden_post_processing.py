"""The recorded post-processing of the reference: random logits of two images, and what it made of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file


LOCAL_FOLDER = Path(__file__).parent.parent / "golden"


def load_case(shared: Path | None) -> SimpleNamespace:
    """The whole case from `shared`, or with None the copy in `tests/golden/`.

    The copy keeps every eighth row and column of the scores (`sub8/`) and the maps of the first image only, its
    masks as bits.
    """
    folder = LOCAL_FOLDER if shared is None else shared / "golden" / "faseg"
    tensors = load_file(folder / "postprocess_a.safetensors")
    meta = json.loads((folder / "postprocess_a.json").read_text())
    for name in [name for name in tensors if name.startswith("bits/")]:
        height, width = meta["params"]["images"][0][2:]
        bits = np.unpackbits(tensors.pop(name).numpy())
        masks = bits[: len(bits) // (height * width) * height * width].reshape(-1, height, width)
        tensors[name.replace("bits/", "out/")] = torch.from_numpy(masks)
    return SimpleNamespace(**{**meta, "tensors": tensors})


def outputs(case: SimpleNamespace) -> Any:
    """The recorded logits as a model's output."""
    return SimpleNamespace(
        class_queries_logits=case.tensors["in/pred_logits"].float(),
        masks_queries_logits=case.tensors["in/pred_masks"].float(),
    )


def sizes(case: SimpleNamespace) -> dict[str, list[tuple[int, int]]]:
    """`input_sizes` and `target_sizes` of the case."""
    images = case.params["images"]
    return {"input_sizes": [tuple(i[:2]) for i in images], "target_sizes": [tuple(i[2:]) for i in images]}
