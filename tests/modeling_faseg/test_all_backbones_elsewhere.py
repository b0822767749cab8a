"""A model on any backbone, saved with its code, finds the same labels where the project cannot be imported."""

import json

import pytest
import torch
from backbone_cases import PYRAMID_CASES, REFUSED, TIMM, TRANSFORMERS, fields_of
from tiny_models import tiny_batch, tiny_model

from clean_process import run_clean
from image_processing import FASegImageProcessor


WORKING = [*(case for case in (*TRANSFORMERS, *TIMM) if case not in REFUSED), *PYRAMID_CASES]
SIZES = [(50, 70), (64, 96)]  # of the label maps
# Loads each folder by its code and writes what it finds, or what went wrong, beside it.
PROGRAM = """
import json
import pathlib
import torch
import transformers

for folder in map(pathlib.Path, json.loads(sys.argv[1])):
    try:
        trust = {"trust_remote_code": True}
        model = transformers.AutoModelForUniversalSegmentation.from_pretrained(folder, **trust).eval()
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **trust)
        with torch.no_grad():
            outputs = model(torch.load(folder / "images.pt"))
        found = processor.post_process_semantic_segmentation(outputs, target_sizes=json.loads(sys.argv[2]))
        torch.save(found, folder / "found.pt")
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory):
    """Case -> its folder and the label maps that its model finds here; all are loaded by one clean process."""
    place = tmp_path_factory.mktemp("elsewhere")
    expected, images = {}, tiny_batch()["pixel_values"]
    for number, case in enumerate(WORKING):
        folder = place / f"model{number}"
        model, processor = tiny_model(**fields_of(case)), FASegImageProcessor()
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        torch.save(images, folder / "images.pt")
        with torch.no_grad():
            outputs = model(images)
        expected[case] = folder, processor.post_process_semantic_segmentation(outputs, target_sizes=SIZES)
    run_clean(PROGRAM, [json.dumps([str(folder) for folder, _ in expected.values()]), json.dumps(SIZES)], place)
    return expected


@pytest.mark.slow
@pytest.mark.parametrize("case", WORKING)
def test_labels_are_the_same_where_the_project_is_not_installed(case, loaded_elsewhere):
    folder, expected = loaded_elsewhere[case]
    assert not (error := folder / "error.txt").exists(), error.read_text()
    found = torch.load(folder / "found.pt")
    assert [tuple(labels.shape) for labels in found] == SIZES
    for labels, wanted in zip(found, expected, strict=True):
        # Untrained networks amplify how two processes round; single pixels may lie on an edge between two classes.
        assert (labels != wanted).float().mean() <= 1e-3
