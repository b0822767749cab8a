"""QLSegConfig names a wrong value and its fix."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_qlseg import tiny_qlseg_config
from transformers import AutoConfig

from configuration import QLSegConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 500}, "image_size=500: set it to 496"),
        ({"window_stride": 65}, "window_stride=65: set it to at most image_size=64"),
        ({"out_indices": [0, 3]}, "give increasing numbers of blocks from 0 to 2"),
        ({"out_indices": [1, 1]}, "give increasing numbers"),
        ({"hidden_size": 48, "num_attention_heads": 4}, "multiple of 32"),
        ({"decoder_attention_heads": 3}, "divisor of the width 16"),
        ({"attention_mask_threshold": 1.5}, "attention_mask_threshold=1.5"),
        ({"ignore_value": 2}, "choose an id that is no class"),
        ({"task": "instance"}, "task"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        tiny_qlseg_config(**values)


def test_survives_a_folder(tmp_path):
    config = tiny_qlseg_config(num_labels=12)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is QLSegConfig
    assert (loaded.num_labels, loaded.num_queries, loaded.window_stride) == (12, 12, 40)


def test_defaults_are_the_released_vit_base():
    config = QLSegConfig()
    assert (config.image_size, config.window_stride, list(config.out_indices)) == (512, 341, [5, 7, 11])
    assert (config.mask_weight, config.dice_weight, config.class_weight) == (20, 1, 1)
