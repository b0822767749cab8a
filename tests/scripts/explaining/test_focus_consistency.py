"""Focus consistency on cases worked out by hand, and through `eval.py --focus`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_folder import write_model_folder
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from scripts import eval as evaluate_command
from scripts.cli.errors import UserError
from scripts.data.synthetic_scenes import draw_sample
from scripts.explaining.focus import FocusCounts, Segment, focus_shares, found_segments, look, predicted_segments
from space_models import write_tiny_model


LEFT = torch.arange(16).expand(16, 16) < 8  # half of an image of 64x64 pixels
WHOLE = torch.ones(16, 16, dtype=torch.bool)


def segment(query, mask):
    return Segment(query, 0, 1.0, 0.5, mask)


def shares(focus, *segments, image=WHOLE, mask_padding=False):
    found = focus_shares(focus, segments, image, mask_padding)
    return [[round(float(value), 6) for value in row] for row in zip(*vars(found).values(), strict=True)]


def test_shares_of_a_focus_by_hand():
    """Two by two cells, of which the left ones are in the mask."""
    focus = torch.tensor([[[0.5, 0.25], [0.25, 0.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.25, 0.25], [0.25, 0.25]]])
    # inside, even over the cells it sees, chance, reaches
    assert shares(focus, segment(0, LEFT)) == [[0.75, round(2 / 3, 6), 0.5, 1.0]]
    assert shares(focus, segment(1, LEFT), segment(2, LEFT)) == [[0, 0, 0.5, 0], [0.5, 0.5, 0.5, 1.0]]


def test_a_cell_counts_by_how_much_of_it_the_mask_covers():
    quarter = torch.arange(16).expand(16, 16) < 4
    focus = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    assert shares(focus, segment(0, quarter)) == [[0.5, 0.5, 0.25, 1.0]]


def test_chance_is_that_of_the_image_where_padding_is_not_looked_at():
    focus = torch.tensor([[[0.5, 0.0], [0.5, 0.0]]])
    top = LEFT & (torch.arange(16)[:, None] < 8)
    assert shares(focus, segment(0, top), image=LEFT)[0][2] == 0.25
    assert shares(focus, segment(0, top), image=LEFT, mask_padding=True)[0][2] == 0.5


def test_a_layer_that_looks_nowhere_is_left_out():
    assert focus_shares(torch.zeros(3, 16, 16), [segment(0, LEFT)], WHOLE) is None
    assert focus_shares(torch.ones(3, 16, 16), [], WHOLE) is None


def test_instances_and_panoptic_segments_are_what_queries_find():
    """Query 0 finds the left surely, 1 the same half of another class less surely, 2 the right with a soft mask, 3 all
    of the image as no object, 4 a speck."""
    class_logits = torch.full((5, 3), -9.0)
    for query, (label, logit) in enumerate(((1, 9.0), (0, -7.0), (1, 9.0), (2, 9.0), (1, 9.0))):
        class_logits[query, label] = logit
    masks_logits = torch.full((5, 16, 16), -9.0)
    masks_logits[0][LEFT], masks_logits[1][LEFT], masks_logits[2][~LEFT], masks_logits[3] = 9.0, 9.0, 0.5, 9.0
    masks_logits[4, :4, 12:] = 9.0
    logits = class_logits, masks_logits, WHOLE

    def found(are_panoptic, threshold):
        return [(one.query, one.label, one.area) for one in found_segments(*logits, are_panoptic, threshold)]

    # Query 1 is of class 0 by exp(2) to 2, so 0.787; query 2 scores sigmoid(0.5), 0.622.
    assert found(False, 0.7) == [(0, 1, 0.5), (1, 0, 0.5)]
    assert found(False, 0.6) == [(0, 1, 0.5), (1, 0, 0.5), (2, 1, 0.5)]
    assert found(True, 0.7) == [(0, 1, 0.5), (2, 1, 112 / 256)]  # 1 loses all its cells to 0, 4 takes some of 2
    first, second = found_segments(*logits, True, 0.7)
    assert first.score > 0.99 and first.mask.equal(LEFT) and second.mask.equal(~LEFT)
    without_right = found_segments(class_logits, masks_logits, LEFT, False, 0.6)
    assert [(one.query, one.area) for one in without_right] == [(0, 1), (1, 1)]  # padding is no part of a segment


def test_segments_are_what_queries_decide():
    """Query 0 decides the left as class 1, query 2 the right as class 0; query 1 loses, query 3 decides a speck."""
    class_logits = torch.full((4, 3), -9.0)
    for query, label in enumerate((1, 1, 0, 0)):
        class_logits[query, label] = 9.0
    masks_logits = torch.full((4, 16, 16), -9.0)
    masks_logits[0][LEFT], masks_logits[1][LEFT], masks_logits[2][~LEFT] = 9.0, 1.0, 5.0
    masks_logits[3, :4, 12:] = 9.0
    segments, without_mask = predicted_segments(class_logits, masks_logits, WHOLE)
    assert [(each.query, each.label, each.area) for each in segments] == [(0, 1, 0.5), (2, 0, 112 / 256)]
    assert segments[0].mask.equal(LEFT) and without_mask == 0
    # Padding is no part of a segment, and a query may decide where its own mask is empty.
    masks_logits[0] = torch.where(LEFT, -0.5, -9.0)
    masks_logits[1] = -9.0
    segments, without_mask = predicted_segments(
        class_logits, masks_logits, torch.arange(16)[:, None].expand(16, 16) < 12
    )
    assert [each.query for each in segments] == [2] and without_mask == 1
    assert segments[0].mask.sum() == 8 * 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("focus") / "tiny", "semantic")
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    return folder, model, AutoImageProcessor.from_pretrained(folder)


def test_counts_of_parts_add_up(tiny):
    _, model, processor = tiny
    images = [draw_sample(np.random.default_rng(seed))[0] for seed in (1, 2, 3)]
    whole, parts = FocusCounts(model, processor, "cpu"), [FocusCounts(model, processor, "cpu") for _ in range(2)]
    for index, image in enumerate(images):
        whole.add({"image": image}, np.zeros((1, 1)))
        parts[index % 2].add({"image": image}, np.zeros((1, 1)))
    assert np.array_equal(whole.totals, parts[0].totals + parts[1].totals)
    scores = whole.scores()
    assert scores["images"] == 3 and scores["segments"] >= 3
    assert [row["reads"] for row in scores["layers"]] == ["1/32", "1/16", "1/8", "1/4 HRCA", "1/32"]
    for row in scores["layers"]:
        assert all(0 <= row[key] <= 1 for key in ("inside", "even", "chance", "reaches"))


def test_looking_gives_what_the_model_gives(tiny):
    _, model, processor = tiny
    image = Image.fromarray(np.asarray(draw_sample(np.random.default_rng(5))[0])[:, :90])
    seen = look(model, processor, image, "cpu", every_prediction=True)
    assert len(seen.outputs.auxiliary_logits) == 5 and seen.segments
    height, width = seen.input_size
    assert seen.image_cells.sum() == -(-height // 4) * -(-width // 4)
    assert sum(each.area for each in seen.segments) <= 1
    assert all(not each.mask[~seen.image_cells].any() for each in seen.segments)


def test_eval_writes_the_scores_when_asked(tiny_recipe, shapes, tmp_path, command):
    folder, results = write_model_folder(tiny_recipe, tmp_path / "model"), tmp_path / "results.json"
    flags = ["--model_name_or_path", folder, "--dataset_name", shapes, "--output_file", results]
    code, out, errors = command(evaluate_command, *flags, "--focus")
    assert code == 0, errors
    scores = json.loads(results.read_text())["focus_consistency"]
    assert scores["images"] == 3 and scores["segments"] > 0
    assert [row["reads"] for row in scores["layers"]] == ["1/32", "1/16", "1/8", "1/4 HRCA"]
    assert 0 < scores["layers"][0]["inside"] <= 100
    assert "focus consistency over" in out and "1/4 HRCA" in out
    code, out, _ = command(evaluate_command, *flags)
    assert code == 0 and "focus_consistency" not in json.loads(results.read_text()) and "HRCA" not in out


def test_a_model_without_focus_is_refused():
    class Other(torch.nn.Module):
        class config:
            model_type = "other"

        def forward(self, pixel_values):
            return pixel_values

    with pytest.raises(UserError, match=r"^--focus: a model of type 'other' has no focus to look at: give a FASeg$"):
        FocusCounts(Other(), None, "cpu")
