"""A saved folder carries both backends and loads where this project cannot be imported."""

import json
from pathlib import Path

import pytest
from transformers import AutoImageProcessor

from clean_process import run_clean
from image_processing import FASegImageProcessor, FASegImageProcessorPil


FILES = {
    "image_processing_faseg.py",
    "image_processing_pil_faseg.py",
    "preprocessing.py",
    "processor_settings.py",
    "host_transfers.py",
    "intensities.py",
    "label_maps.py",
    "model_outputs.py",
    "post_processing.py",
    "run_lengths.py",
    "segments.py",
    "semantic_labels.py",
    "preprocessor_config.json",
}
SETTINGS = {"task": "instance", "num_labels": 7, "pad_size": {"height": 64, "width": 96}, "do_reduce_labels": True}

CLEAN_PROCESS = """
import json
folder, again, without_torchvision = sys.argv[1:]
if without_torchvision == "yes":
    imported = [name for name in sys.modules if name.partition(".")[0] == "torchvision"]
    sys.modules.update(dict.fromkeys(["torchvision", *imported]))
from transformers import AutoImageProcessor
import numpy as np
names = []
for backend in (None, "pil") if without_torchvision == "yes" else (None, "pil", "torchvision"):
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True, backend=backend)
    processor.save_pretrained(f"{again}/{backend}")
    once_more = AutoImageProcessor.from_pretrained(f"{again}/{backend}", trust_remote_code=True, backend=backend)
    assert once_more.to_dict() == processor.to_dict()
    inputs = once_more(np.zeros((40, 300, 3), np.uint8), return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 64, 96), inputs.pixel_values.shape
    assert hasattr(once_more, "post_process_instance_segmentation")
    assert not hasattr(once_more, "post_process_panoptic_segmentation")
    names.append(type(once_more).__name__)
print(json.dumps(names))
"""


@pytest.mark.parametrize("processor_class", [FASegImageProcessor, FASegImageProcessorPil])
def test_saved_folder(processor_class, tmp_path):
    processor = processor_class(**SETTINGS)
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"]["AutoImageProcessor"] == {
        "torchvision": "image_processing_faseg.FASegImageProcessor",
        "pil": "image_processing_pil_faseg.FASegImageProcessorPil",
    }
    assert saved["image_processor_type"] == "FASegImageProcessor"
    assert {name: saved[name] for name in SETTINGS} == SETTINGS
    # Installed, the classes are this project's and need no trust_remote_code.
    for backend, expected in ((None, FASegImageProcessor), ("pil", FASegImageProcessorPil)):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
        assert type(loaded) is expected
        assert loaded.to_dict() == processor.to_dict()
    panoptic = AutoImageProcessor.from_pretrained(tmp_path, task="panoptic")
    assert hasattr(panoptic, "post_process_panoptic_segmentation")


@pytest.mark.system
@pytest.mark.parametrize("without_torchvision", ["no", "yes"])
def test_clean_process(without_torchvision, tmp_path):
    (FASegImageProcessor if without_torchvision == "yes" else FASegImageProcessorPil)(**SETTINGS).save_pretrained(
        tmp_path / "saved"
    )
    output = run_clean(CLEAN_PROCESS, [str(tmp_path / "saved"), str(tmp_path), without_torchvision], tmp_path)
    names = json.loads(output.splitlines()[-1])
    pil, torchvision = "FASegImageProcessorPil", "FASegImageProcessor"
    assert names == ([pil, pil] if without_torchvision == "yes" else [torchvision, pil, torchvision])
    for backend in ("None", "pil"):
        assert {path.name for path in Path(tmp_path, backend).iterdir()} == FILES


def test_importing_the_package_registers_both_backends():
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    from configuration import FASegConfig

    assert IMAGE_PROCESSOR_MAPPING[FASegConfig] == {
        "torchvision": FASegImageProcessor,
        "pil": FASegImageProcessorPil,
    }
