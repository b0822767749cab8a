"""`scripts/explain.py`: the page and images that it leaves, the paths that it follows, what it refuses."""

import io
import re
from base64 import b64decode
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation

from modeling_faseg import FASegForUniversalSegmentation
from scripts import explain as explain_command
from scripts.cli.errors import UserError
from scripts.data.synthetic_scenes import draw_sample
from scripts.drawing.charts import Line, layer_chart
from scripts.explaining import explainer
from scripts.explaining.focus import Look, Segment, look
from scripts.explaining.images import HEAT, MASK_COLOUR, WINDOW_COLOUR, focus_image, over_image
from scripts.explaining.paths import Step, counterpart, focus_path
from space_models import write_tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a tiny model and of another with plain learned queries."""
    folder = tmp_path_factory.mktemp("models")
    first = write_tiny_model(folder / "first", "semantic")
    return first, write_sibling(first, folder / "second", use_dynamic_positional_queries=False)


def write_sibling(folder, sibling, **changes):
    """A random model of another configuration with the same processor."""
    torch.manual_seed(0)
    FASegForUniversalSegmentation(AutoConfig.from_pretrained(folder, **changes)).save_pretrained(sibling)
    AutoImageProcessor.from_pretrained(folder).save_pretrained(sibling)
    return sibling


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    file = tmp_path_factory.mktemp("images") / "a <street>.png"
    draw_sample(np.random.default_rng(8))[0].save(file)  # of two segments for the tiny model
    return file


def test_the_page_holds_its_images_and_leaves_them_as_files(models, street, tmp_path, command):
    code, out, errors = command(
        explain_command, street, "--model_name_or_path", models[0], "--output_dir", tmp_path, "--max_segments", 2
    )
    assert (code, errors[-1:] if code else []) == (0, [])
    assert f"page in {tmp_path / 'explain.html'}" in out
    page = (tmp_path / "explain.html").read_text()
    assert "a &lt;street&gt;.png" in page and "road &amp; &lt;kerb&gt;" in page and "<street>" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)  # one file, which fetches nothing
    sources = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    assert all(Image.open(io.BytesIO(b64decode(source))).width > 0 for source in sources)
    assert len(sources) == 2 + 1 + 2 * 5  # image and prediction, one HRCA layer, two segments of five layers
    files = {path.name for path in tmp_path.iterdir()}
    assert {"explain.html", "a <street>_prediction.png", "a <street>_windows_layer4.png"} < files
    assert sum("_segment" in name for name in files) == 2


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_the_page_of_segments_follows_what_each_query_found(task, model_of, street, tmp_path, command):
    flags = [street, "--model_name_or_path", model_of(task), "--output_dir", tmp_path, "--max_segments", 1]
    code, _, errors = command(explain_command, *flags, "--threshold", 0)
    assert code == 0, errors
    page = (tmp_path / "explain.html").read_text()
    assert "untinted class" not in page and "contours only" in page
    assert re.search(r"</span>(\d+ )?(car|sky|road &amp; &lt;kerb&gt;) [01]\.\d\d", page)  # number, class, score
    with Image.open(tmp_path / "a <street>_prediction.png") as prediction, Image.open(street) as image:
        assert prediction.height > image.height
    if task == "instance":
        assert sum("_segment" in file.name for file in tmp_path.iterdir()) == 1


def test_another_checkpoint_is_compared(models, street, tmp_path, command):
    flags = [street, "--model_name_or_path", models[0], "--compare", models[1], "--output_dir", tmp_path]
    code, _, errors = command(explain_command, *flags, "--max_segments", 1)
    assert code == 0, errors
    page = (tmp_path / "explain.html").read_text()
    assert "first, dynamic focus (DFPQ)" in page and "second, plain learned queries" in page
    assert "prediction of second, plain learned queries" in page


@pytest.mark.parametrize(
    ("given", "flags", "message"),
    [
        ("image", [], "no checkpoint: give --model_name_or_path"),
        ("model", [], "no image: name images or a folder of them"),
        ("both", ["--threshold", 0.5], "--threshold 0.5 is for instance and panoptic models"),
        ("both", ["--max_segments", 0], "--max_segments 0: give at least 1"),
    ],
)
def test_what_cannot_be_explained_is_refused(given, flags, message, models, street, tmp_path, command):
    image = [] if given == "model" else [street]
    model = [] if given == "image" else ["--model_name_or_path", models[0], "--output_dir", tmp_path]
    code, _, errors = command(explain_command, *image, *model, *flags)
    assert code == 2 and len(errors) == 1 and message in errors[0]


def test_a_model_of_other_classes_is_not_compared(models, street, tmp_path, command):
    flags = ["--model_name_or_path", models[0], "--output_dir", tmp_path]
    others = write_sibling(models[0], tmp_path / "others", id2label={0: "a"}, label2id={"a": 0})
    code, _, errors = command(explain_command, street, *flags, "--compare", others)
    assert code == 2 and "has other classes than the model: give one of the same" in errors[-1]


@torch.no_grad()
def test_a_path_is_what_the_model_tells(models, street):
    model = AutoModelForUniversalSegmentation.from_pretrained(models[0]).eval()
    processor = AutoImageProcessor.from_pretrained(models[0])
    image = Image.open(street).convert("RGB")
    seen = look(model, processor, image, "cpu", every_prediction=True)
    segment = seen.segments[0]
    steps = focus_path(seen, segment, model.config).steps
    assert [step.reads for step in steps] == ["1/32", "1/16", "1/8", "1/4 HRCA", "1/32"]
    final = seen.outputs.class_queries_logits[0, segment.query].softmax(-1)
    assert steps[-1].score == pytest.approx(float(final[segment.label]))
    after_first = seen.outputs.auxiliary_logits[1]["class_queries_logits"][0, segment.query].softmax(-1)
    assert steps[0].score == pytest.approx(float(after_first[segment.label]))
    for step, focus in zip(steps, seen.outputs.focus_maps, strict=True):
        assert step.focus.equal(focus[0, segment.query])
    windows, side = seen.outputs.hrca_windows[3]
    assert len(steps[3].windows) == windows.shape[1] > 0
    read = torch.zeros_like(steps[3].focus)
    for left, top, right, bottom in steps[3].windows:
        assert (right - left, bottom - top) == (4 * side, 4 * side)
        read[top // 4 : bottom // 4, left // 4 : right // 4] = 1
    assert float((steps[3].focus * (1 - read)).sum()) == 0


def test_the_other_models_segment_is_the_one_that_overlaps_most():
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:, :4] = True
    ours = Segment(0, 1, 1.0, 0.5, half)
    large = Segment(3, 1, 1.0, 1.0, torch.ones(16, 16, dtype=torch.bool))
    same = Segment(4, 1, 1.0, 0.5, torch.arange(16).expand(16, 16) < 9)
    wrong_class = Segment(5, 2, 1.0, 0.5, torch.arange(16).expand(16, 16) < 8)
    assert counterpart(ours, [large, wrong_class, same]) is same
    assert counterpart(ours, [wrong_class]) is None


def padded_look():
    """An image of 64x48 pixels in a network input of 64x64."""
    image = torch.zeros(16, 16, dtype=torch.bool)
    image[:, :12] = True
    return Look(None, (64, 48), image, [], 0)


def test_maps_lie_over_the_image_without_its_padding():
    values = torch.zeros(16, 16)
    values[:, 12:] = 1  # padding
    values[:4, 8:12] = 2
    placed = over_image(values, padded_look(), (96, 128), smooth=False)
    assert placed.shape == (128, 96)
    expected = np.zeros((128, 96))
    expected[:32, 64:] = 2
    assert np.array_equal(placed, expected)


def test_a_focus_image_shows_heat_outline_and_windows():
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[8:, :6] = True
    focus = torch.zeros(2, 2)
    focus[1, 0] = 1.0
    step = Step(4, "1/4 HRCA", focus, 1.0, 0.5, 0.2, [(0, 32, 32, 64), (32, 0, 64, 32)], ("car", 0.9), 0.9)
    image = focus_image(Image.new("RGB", (48, 64), "white"), step, mask, padded_look(), 96)
    assert image.size == (96, 128)
    pixels = np.asarray(image)
    assert tuple(pixels[64, 0]) == tuple(pixels[0, 64]) == WINDOW_COLOUR
    assert tuple(pixels[90, 47]) == MASK_COLOUR and tuple(pixels[90, 48]) == MASK_COLOUR
    assert tuple(pixels[119, 10]) == tuple(round(255 * channel) for channel in HEAT(1.0)[:3])  # where it looked
    assert tuple(pixels[5, 5]) == (128, 128, 128)
    nothing = Step(4, "1/4 HRCA", torch.zeros(16, 16), None, None, None, [], ("nothing", 0.9), 0.0)
    grey = np.asarray(focus_image(Image.new("RGB", (48, 64), "white"), nothing, mask, padded_look(), 96))
    assert tuple(grey[5, 5]) == (128, 128, 128)


def test_a_chart_breaks_where_a_layer_did_not_look():
    chart = layer_chart([Line("a & b", [0.0, None, 1.0, 0.5], "#123456")], ["1/32"] * 3 + ["1/4 HRCA"], "label")
    (path,) = re.findall(r'<path d="([^"]+)"', chart)
    assert path.count("M") == 2 and path.count("L") == 1
    assert chart.count("<circle") == 3 and chart.count("<rect") == 1
    assert "a &amp; b" in chart


def test_a_model_without_focus_is_refused(monkeypatch):
    """A model whose forward knows no focus is refused by name."""
    arguments = explain_command.ExplainArguments(model_name_or_path="other")
    monkeypatch.setattr(explainer, "build_config", lambda arguments: None)
    other = torch.nn.Linear(1, 1)
    other.config = SimpleNamespace(model_type="other")
    monkeypatch.setattr(explainer, "build_model", lambda *args, **kwargs: other)
    with pytest.raises(UserError, match="a model of type 'other' has no focus"):
        explainer.Explainer(arguments, "cpu")
