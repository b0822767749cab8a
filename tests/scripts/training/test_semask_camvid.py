"""SeMask on real images: whether the semantic attention of every stage learns from the recipes' first steps on."""

import pytest
from safetensors.torch import load_file

from scripts import train


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("recipe", ["semask-tiny-camvid", "faseg-semask-camvid"])
def test_semantic_attention_comes_alive_in_training(recipe, shared, tmp_path, command):
    """Twenty steps of the recipe, streamed, at its warm-up's low rates: every gamma has left its 0."""
    code, *_ = command(
        train, recipe, "--dataset_name", shared / "data" / "camvid", "--output_dir", tmp_path / "model",
        "--max_train_steps", 20, "--dataloader_num_workers", 1,
    )  # fmt: skip
    assert code == 0
    weights = load_file(tmp_path / "model" / "model.safetensors")
    gammas = {name: value.item() for name, value in weights.items() if name.endswith(".gamma")}
    assert len(gammas) == 4 and all(abs(gamma) > 1e-4 for gamma in gammas.values()), gammas
