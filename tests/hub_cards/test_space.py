"""The Space's folder, and what stands behind its page; the page itself is tested in a browser (tests/browser)."""

import importlib
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from httpx2 import Request, Response
from huggingface_hub import metadata_load
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image

from clean_process import run_clean
from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from scripts import space
from scripts.cli.errors import UserError
from scripts.inference.predictors import SingleScale
from scripts.inference.sliding_window import Tiles
from space_models import write_tiny_model


ROOT = Path(__file__).parents[2]
SEGMENT_ELSEWHERE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from segment import load_model, read_image, segment
loaded = load_model(sys.argv[2])
for task in loaded.tasks:
    result = segment(loaded, read_image(Path(sys.argv[3]), 10**6), task, 0.05)
    result.write(Path(sys.argv[4]), task)
print(*loaded.tasks)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The Space of a model on the Hub."""
    folder = tmp_path_factory.mktemp("space")
    space.write_space(folder, "user/a-model")
    return folder


@pytest.fixture
def segment(folder, monkeypatch):
    """The module `segment` of the Space, imported as the Space imports it."""
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("segment")
    for name in ("segment", "tiles", "visualization"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def panoptic_folder(tmp_path_factory):
    """A tiny model that offers all tasks, with its code."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny", "panoptic")


def test_the_folder_is_ready_to_push(folder):
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == [
        "README.md",
        "app.py",
        "examples/road-1.jpg",
        "examples/road-2.jpg",
        "examples/road-3.jpg",
        "requirements.txt",
        "segment.py",
        "tiles.py",
        "visualization.py",
    ]
    card = metadata_load(folder / "README.md")
    assert card["models"] == ["user/a-model"] and card["title"] == "FASeg a-model"
    assert card["sdk"] == "gradio" and card["sdk_version"] == space.GRADIO_VERSION
    assert (folder / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60  # the Hub refuses longer ones
    assert "{{" not in (folder / "README.md").read_text()
    assert (folder / "visualization.py").read_text() == (ROOT / "scripts" / "drawing" / "visualization.py").read_text()
    for file in (folder / "examples").iterdir():
        with Image.open(file) as image:
            image.load()
        assert file.stat().st_size < 150_000


def test_nothing_of_the_project_is_imported():
    """On the Hub it is not installed."""
    packages = "configuration|image_processing|modeling_faseg|scripts|tests"
    for file in (file for file in space.SPACE_FILES if file.suffix == ".py"):
        assert not re.search(rf"^\s*(from|import) ({packages})\b", file.read_text(), re.MULTILINE), file


def test_requirements_are_the_projects():
    """The lower bounds that the project is tested with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in (space.SPACE / "requirements.txt").read_text().split():
        assert line in project["dependencies"]
    demo = project.get("optional-dependencies", {}).get("demo", [])
    assert not demo or f"gradio>={space.GRADIO_VERSION}" in demo


def test_sample_images_of_the_model_are_its_examples(tmp_path):
    model = tmp_path / "model"
    (model / "samples").mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(model / "samples" / f"{number}_input.jpg")
        Image.new("RGB", (16, 8)).save(model / "samples" / f"{number}.jpg")
    samples = space.sample_images([str(model), "nobody/none"])
    assert samples == [model / "samples" / f"{number}_input.jpg" for number in range(6)]
    space.write_space(tmp_path / "space", str(model), samples=samples)
    assert sorted(file.name for file in (tmp_path / "space" / "examples").iterdir()) == [
        f"sample-{number}.jpg" for number in range(1, 7)
    ]
    assert "sample images of the models' repositories" in (tmp_path / "space" / "README.md").read_text()
    space.write_space(tmp_path / "space", "nobody/none", samples=space.sample_images(["nobody/none"]))
    assert "drawn by a script" in (tmp_path / "space" / "README.md").read_text()


def test_tiles_in_the_space_are_the_commands(segment, panoptic_folder):
    """And what it reads far smaller it says."""
    model = FASegForUniversalSegmentation.from_pretrained(panoptic_folder).eval()
    processor = FASegImageProcessor.from_pretrained(panoptic_folder)
    loaded = segment.LoadedModel(model, processor)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8))
    whole = segment.segment(loaded, image, "semantic", 0.5)
    assert whole.note.startswith("Read at 85 x 64 pixels, 2.4 times smaller than it is")
    found = segment.segment(loaded, image, "semantic", 0.5, tile=64)
    processor.do_resize = False
    expected = SingleScale(model, processor, "cpu", Tiles(64, 64, (16, 16)))(image)
    assert (found.class_ids == expected).mean() > 0.999 and not found.note
    processor.do_resize = True
    smaller = segment.segment(loaded, image, "semantic", 0.5, tile=64, shortest_edge=70)
    assert smaller.class_ids.shape == (150, 200) and smaller.note.startswith("Read at 93 x 70 pixels")
    larger = segment.segment(loaded, image, "panoptic", 0.5, shortest_edge=120)
    assert larger.class_ids.shape == (150, 200) and not larger.note
    for wrong, message in (({"tile": 7}, "at least 32"), ({"tile": 64, "task": "panoptic"}, "Tiles are for semantic")):
        with pytest.raises(segment.Problem, match=message):
            segment.segment(loaded, image, **{"task": "semantic", "threshold": 0.5, **wrong})


def test_an_odd_name_stays_one_yaml_string(tmp_path):
    space.write_space(tmp_path, 'odd: "name" #1')
    assert metadata_load(tmp_path / "README.md")["models"] == ['odd: "name" #1']


def test_several_models_are_offered(tmp_path):
    space.write_space(tmp_path, "user/first", "./second: of # two")
    card = metadata_load(tmp_path / "README.md")
    assert card["models"] == ["user/first", "./second: of # two"] and card["title"] == "FASeg first"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"the Space could not be written to .*taken"):
        space.write_space(tmp_path / "taken", "user/a-model")


@pytest.mark.system
def test_every_task_where_the_project_is_not_installed(folder, panoptic_folder, tmp_path):
    image_file = folder / "examples" / "road-1.jpg"
    tasks = run_clean(
        SEGMENT_ELSEWHERE, [str(folder), str(panoptic_folder), str(image_file), str(tmp_path)], tmp_path
    ).split()
    assert tasks == ["panoptic", "semantic", "instance"]

    model = FASegForUniversalSegmentation.from_pretrained(panoptic_folder).eval()
    processor = FASegImageProcessor.from_pretrained(panoptic_folder)
    image = Image.open(image_file).convert("RGB")
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "semantic_labels.png")), SingleScale(model, processor, "cpu")(image)
    )
    inputs = processor(images=[image], return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
    for task in ("panoptic", "instance"):
        post_process = getattr(processor, f"post_process_{task}_segmentation")
        answer = post_process(outputs, threshold=0.05, target_sizes=[(image.height, image.width)])[0]
        assert answer["segments_info"], "a test that sees no segment"
        class_of = {entry["id"]: entry["label_id"] for entry in answer["segments_info"]}
        expected = np.vectorize(lambda number: class_of.get(number, 255))(answer["segmentation"].numpy())  # noqa: B023
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"{task}_labels.png")), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.jpg", r"^broken.jpg cannot be read"),
        ("large.png", r"^large.png is too large: 300 x 200 are 0\.1 megapixels, at most 0\.1 are taken"),
        ("deep.png", r"^deep.png has more than 8 bits"),
        ("gone.png", r"^gone.png cannot be read"),
    ],
)
def test_images_that_cannot_be_used(name, message, segment, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "broken.jpg")
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "broken.jpg").read_bytes()[:-200])
    Image.new("L", (300, 200)).save(tmp_path / "large.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(segment.Problem, match=message):
        segment.read_image(tmp_path / name, 50_000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".", "holds no config.json"),
        ("a b/c", "is neither a folder nor a name on the Hub"),
        ("./strange", "cannot be loaded: .*no_such_type"),
    ],
)
def test_models_that_cannot_be_used(name, message, segment, tmp_path, monkeypatch):
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "no_such_type"}')
    (tmp_path / "strange" / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    with pytest.raises(segment.Problem, match=message):
        segment.load_model(str(tmp_path / name) if name.startswith(".") else name)


class StandIn:
    """A model that notes how it is compiled, and the code of one that cannot be."""

    def __init__(self, can_compile):
        self.modes = []
        if can_compile:
            self.compile_for_inference = lambda mode: self.modes.append(mode)

    def to(self, device):
        self.device = device
        return self

    def eval(self):
        return self


@pytest.mark.parametrize(
    ("device", "compiler", "can_compile", "modes"),
    [
        ("cuda", "/usr/bin/cc", True, ["default"]),
        ("cuda", "/usr/bin/cc", False, []),
        ("cuda", None, True, []),
        ("cpu", "/usr/bin/cc", True, []),
    ],
)
def test_models_are_compiled_on_a_gpu_alone(device, compiler, can_compile, modes, segment, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    model, processor = StandIn(can_compile), SimpleNamespace(image_mean=[0.5] * 3)
    for auto_class, loaded in (
        (segment.AutoModelForUniversalSegmentation, model),
        (segment.AutoImageProcessor, processor),
    ):
        monkeypatch.setattr(auto_class, "from_pretrained", lambda *_, loaded=loaded, **__: loaded)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device(device))
    monkeypatch.setattr(segment.shutil, "which", lambda name: compiler if name == "cc" else None)
    assert segment.load_model(str(tmp_path)).model.modes == modes


ANSWER = Response(401, request=Request("GET", "http://localhost"))


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (GatedRepoError("gated", response=ANSWER), "access is restricted"),
        (RepositoryNotFoundError("none", response=ANSWER), "no such model, or it is private"),
        (LocalEntryNotFoundError("offline mode is enabled"), "the Hub cannot be reached"),
        (ConnectionError("refused"), "the Hub cannot be reached"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_why_the_hub_gave_no_model(cause, message, segment):
    error = OSError("a long text")
    error.__cause__ = cause
    assert message in segment.loading_failure(error)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "give --model_name_or_path"),
        (".", "no config.json there"),
        ("outputs/no-such-folder/model", "neither a folder nor a name on the Hub"),
        ("no-such-folder", "names on the Hub are user/model"),
    ],
)
def test_the_command_refuses_models_that_cannot_work(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        space.checked_model(str(tmp_path) if name == "." else name)


def test_the_command_refuses_a_port_that_is_none():
    with pytest.raises(UserError, match="--port 70000: give 1 to 65535"):
        space.check_port(70000)


def test_a_port_that_is_taken():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: .*: give another"):
            space.check_port(port)


def test_instances_of_one_class_have_shades_and_none_the_number_of_nothing(segment):
    torch_map = torch.full((3, 300), -1, dtype=torch.int32)
    torch_map[1] = torch.arange(300)
    infos = [{"id": index, "label_id": index % 2, "score": 0.5} for index in range(300)]
    result = segment.segments_result(
        Image.new("RGB", (300, 3)), {"segmentation": torch_map, "segments_info": infos}, {}
    )
    numbers = [entry.number for entry in result.found]
    assert len(numbers) == 300 and 255 not in numbers and (result.regions[0] == 255).all()
    assert result.regions[1].tolist() == sorted(numbers)
    assert len({result.palette[number] for number in numbers}) > 200 and result.palette[1] != result.palette[3]
