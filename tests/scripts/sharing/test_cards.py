"""Model cards: every figure from a results file, published ones apart, licences said loudly, valid for the Hub."""

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_exports import loopback
from huggingface_hub import ModelCard
from PIL import Image
from tiny_folder import write_model_folder
from transformers import CONFIG_MAPPING

from command_runs import run_here
from configuration import FASegConfig
from scripts import train
from scripts.cli.errors import UserError
from scripts.cli.parser import PROJECT_ROOT, parse_arguments
from scripts.data.synthetic_scenes import draw_sample
from scripts.models.tasks import DEFAULT_THRESHOLDS
from scripts.sharing.card_facts import DATASET_FACTS, HUB_CARDS, card_file, read_card, read_published
from scripts.sharing.cards import model_card, without_local_paths
from scripts.sharing.papers import paper_of
from scripts.sharing.repository import licence_text
from scripts.sharing.results_files import NEEDED, RESULTS, read_results, results_fault


MODEL_IDS = sorted(file.parent.name for file in HUB_CARDS.glob("*/card.yaml"))
CAMVID = "faseg-mobilenetv2-camvid"
RECIPE = {"max_train_steps": 520, "learning_rate": 0.0005, "crop_height": 256}
HAND_TYPED = re.compile(r"\d+\.\d|\d\s*%|mIoU", re.IGNORECASE)


@pytest.fixture
def results():
    return read_results(PROJECT_ROOT / "results" / f"{CAMVID}.json")


def card_of(model_id, results=None, recipe=None, **settings):
    facts, family = read_card(card_file(model_id)), model_id.split("-")[0]
    task = {} if task_of(model_id) == "semantic" else {"task": task_of(model_id)}
    config = CONFIG_MAPPING[family](**task)
    return model_card(model_id, f"tester/{model_id}", config, facts, results, recipe, **settings)


@pytest.mark.parametrize(("family", "others"), [("semask", ("FASeg", "QLSeg")), ("qlseg", ("FASeg", "SeMask"))])
def test_a_model_of_ones_own_cites_its_own_paper(family, others):
    """The paper goes by the kind of model, whatever its name."""
    card = model_card("my-streets", "tester/my-streets", CONFIG_MAPPING[family](), read_card(card_file(CAMVID)))
    assert family in card.data.tags and "faseg" not in card.data.tags
    bibtex = card.text[card.text.index("```bibtex") :]
    assert {"semask": "SeMask", "qlseg": "Multi-query"}[family] in bibtex and "focus-aware" not in bibtex.lower()
    about = card.text[: card.text.index("```bibtex")]
    assert not any(f"[{other}](" in about for other in others)


def section(card, title):
    """A section of a card, down to the next heading of any kind."""
    return re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", card.text, re.DOTALL | re.MULTILINE)[1]


def snippets_of(card, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", section(card, "Use"), re.DOTALL)


def decimals(text):
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", text))


def task_of(model_id):
    return next((task for task in ("instance", "panoptic") if model_id.endswith(task)), "semantic")


def test_every_model_has_a_card():
    assert len(MODEL_IDS) >= 6 + 12 and CAMVID in MODEL_IDS
    assert {file.parent.name for file in HUB_CARDS.glob("faseg-*/config.json")} <= set(MODEL_IDS)


@pytest.mark.parametrize("model_id", MODEL_IDS)
def test_cards_carry_what_they_must(model_id):
    card = card_of(model_id, recipe=RECIPE if model_id == CAMVID else None)
    data = card.data.to_dict()
    licence, task = read_card(card_file(model_id)).license, task_of(model_id)
    wanted = {"license": licence, "library_name": "transformers", "pipeline_tag": "image-segmentation"}
    assert {key: data[key] for key in wanted} == wanted
    lines = [line for line in card.text.splitlines() if line.strip()]
    assert lines[0].startswith(("# FASeg", "# SeMask", "# QLSeg"))
    if licence == "cc-by-nc-4.0":
        assert lines[1].startswith("> **Not for commercial use.**"), "not loud"
        assert "cc-by-nc-4.0" in "".join(lines[1:3]).lower().replace(" ", "-")
    for title in ("Use", "Measured", "Data and licence", "How it was trained", "Limits", "Cite"):
        assert section(card, title).strip(), title
    assert paper_of(model_id.split("-")[0]).citation in card.text
    assert "Small and thin things" in section(card, "Limits")
    assert "{{" not in card.text and "None" not in card.text
    regions, label_map = snippets_of(card)
    assert 5 <= len(regions.splitlines()) <= 6 and f'"tester/{model_id}"' in regions
    assert f"post_process_{task}_segmentation" in label_map and label_map.count(f'"tester/{model_id}"') == 2


def task_card(task, recipe=None):
    facts = replace(read_card(card_file(CAMVID)), summary="Finds things on roads.")
    return model_card("own", "tester/own", FASegConfig(task=task), facts, recipe=recipe)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_the_card_of_another_task_says_so(task):
    card = task_card(task, RECIPE)
    assert f"{task}-segmentation" in card.data.tags and "semantic-segmentation" not in card.data.tags
    assert f"trained for {task} segmentation" in card.text
    regions, segments = snippets_of(card)
    assert f"post_process_{task}_segmentation" in segments and "semantic" not in card.text.split("```bibtex")[0]
    assert f"threshold={DEFAULT_THRESHOLDS[task]}" in regions and 'region["score"]' in regions
    (shell,) = snippets_of(card, "bash")
    python, script, *flags = shlex.split(shell.replace("\\\n", " "))
    assert (python, script) == ("python", "scripts/train.py")
    assert parse_arguments(train.TrainArguments, flags).task == task


@pytest.mark.system
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_the_snippets_of_another_task_run(task, model_of, tmp_path, monkeypatch, capsys):
    draw_sample(np.random.default_rng(1))[0].save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    for code in snippets_of(task_card(task)):
        names: dict = {}
        exec(code.replace("tester/own", str(model_of(task))), names)
        assert re.search(r"^(sky|road & <kerb>|car) \(?\d", capsys.readouterr().out, re.MULTILINE)
    assert names["found"]["segmentation"].shape == (128, 160)


@pytest.mark.system
def test_the_snippets_run(tiny_recipe, tmp_path, monkeypatch, capsys):
    """A tiny model's folder stands in for the name on the Hub; snippets of semantic models differ in nothing else."""
    model = write_model_folder(tiny_recipe, tmp_path / "model")
    Image.new("RGB", (80, 48), "green").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    cards = {model_id: card_of(model_id) for model_id in MODEL_IDS if task_of(model_id) == "semantic"}
    found = {
        tuple(code.replace(f"tester/{name}", str(model)) for code in snippets_of(card)) for name, card in cards.items()
    }
    assert len(found) == 1
    regions, label_map = found.pop()
    exec(regions, {})
    assert re.search(r"^class \d \(\d+, \d+, \d+, \d+\)$", capsys.readouterr().out, re.MULTILINE)
    names: dict = {}
    exec(label_map, names)
    shares = re.findall(r"^class \d (\d\.\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert names["labels"].shape == (48, 80) and sum(map(float, shares)) == pytest.approx(1)


@pytest.mark.system
def test_the_command_that_trains_on_runs(tiny_recipe, tmp_path, monkeypatch):
    """On folders of the names that it gives; shortened to one step, which is all that is changed."""
    model = write_model_folder(tiny_recipe, tmp_path / "model")
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        Image.new("RGB", (80, 64), (0, 60 * number, 0)).save(tmp_path / f"images/{number}.png")
        mask = Image.new("L", (80, 64), 0)
        mask.paste(1, (0, 0, 20 + 10 * number, 64))
        mask.save(tmp_path / f"masks/{number}.png")
    (tmp_path / "id2label.json").write_text(json.dumps({"0": "road", "1": "kerb"}))
    monkeypatch.chdir(tmp_path)
    (shell,) = snippets_of(card_of(CAMVID, recipe={"crop_height": 64, "crop_width": 64}), "bash")
    python, script, *flags = shlex.split(shell.replace("\\\n", " ").replace(f"tester/{CAMVID}", str(model)))
    assert (python, script) == ("python", "scripts/train.py") and flags[-1] == "outputs/finetuned"
    flags[flags.index("--max_train_steps") + 1] = "1"
    assert run_here(train, *flags, "--dataloader_num_workers", "0") == 0
    tuned = json.loads((tmp_path / "outputs/finetuned/config.json").read_text())
    assert tuned["id2label"] == {"0": "road", "1": "kerb"}


@pytest.mark.parametrize("model_id", MODEL_IDS)
def test_cards_validate_with_the_hub_library(model_id, results, monkeypatch):
    """Here as metadata, and by the library's own call, which asks the Hub: the stand-in checks what is on the wire."""
    with loopback(monkeypatch) as hub:
        for card in (card_of(model_id), card_of(model_id, results)):
            card.validate()
            again = ModelCard(str(card))
            assert again.data.to_dict() == card.data.to_dict()
        assert hub.requested("/api/validate-yaml") == 2
        card.data.license, card.data.license_name = "other", None
        with pytest.raises(ValueError, match="license"):
            card.validate()


def test_measured_figures_are_those_of_the_results_file(results):
    card = card_of(CAMVID, results, RECIPE)
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    expected = {"mean_iou": "mean_iou", "accuracy": "overall_accuracy", "mean_accuracy": "mean_accuracy"}
    assert {metric: found[metric] for metric in expected} == {
        metric: round(results[key], 1) for metric, key in expected.items()
    }, "rounded as in the text"
    assert (
        card.data.eval_results[0].dataset_name == "CamVid" and card.data.eval_results[0].dataset_split == "validation"
    )
    measured = section(card, "Measured")
    assert f"On CamVid validation ({results['images']} images)" in measured
    for key in ("mean_iou", "overall_accuracy", "mean_boundary_iou"):
        assert f"| {results[key]:.1f} |" in measured
    for name, row in results["per_class"].items():
        assert f"| {name} | {row['iou']:.1f} | {row['accuracy']:.1f} |" in measured
    assert results["command"] in measured and "`native` (shortest_edge 360" in measured
    assert results["project"]["commit"][:7] in measured


def test_no_figure_is_typed_by_hand(results):
    """Whatever decimal a card shows changes with its sources: shift them all, and none stays."""
    for model_id in MODEL_IDS:
        facts = re.sub("((NC|BY).4|Apache.2).0", "", card_file(model_id).read_text(), flags=re.IGNORECASE)
        assert not HAND_TYPED.search(facts), model_id

    def shifted(value):
        if isinstance(value, dict):
            return {key: shifted(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shifted(item) for item in value]
        return value + 0.5 if isinstance(value, float) and value > 1 else value

    before, after = (decimals(section(card_of(CAMVID, source), "Measured")) for source in (results, shifted(results)))
    expected = {f"{row['iou'] + 0.5:.1f}" for row in results["per_class"].values()}
    assert expected <= after and f"{results['mean_iou'] + 0.5:.1f}" in after
    assert f"{results['mean_iou']:.1f}" in before


def test_published_figures_stand_apart_and_are_not_model_index(results):
    for model_id in MODEL_IDS:
        card, published = card_of(model_id), read_published().get(model_id, {})
        assert card.data.eval_results is None, "the authors' figures are no result of this repository"
        assert section(card, "Measured").startswith("\nNot measured")
        if not published:
            assert "### Published" not in card.text
            continue
        assert "**not measured here**" in section(card, "Published")
        assert str(published["mean_iou"]) in section(card, "Published")
        assert str(published["mean_iou"]) not in card.text.replace(section(card, "Published"), "")
        assert "not reproduced" in section(card, "Limits")


def test_a_figure_that_is_missing_is_said_to_be(results):
    del results["mean_boundary_iou"], results["interval"], results["segment_sizes"]
    results["mean_accuracy"] = None
    results["per_class"]["pole"] = {"iou": None, "accuracy": None}
    card = card_of(CAMVID, results)
    measured = section(card, "Measured")
    for line in ("| mean boundary IoU | not measured |", "| mean accuracy | not measured |"):
        assert line in measured
    assert "| pole | not measured | not measured |" in measured and "interval" not in measured
    assert {result.metric_type for result in card.data.eval_results} == {"mean_iou", "accuracy"}
    assert "by how much was not measured here" in section(card, "Limits")


def test_limits_name_small_segments_and_the_worst_classes(results):
    limits = section(card_of(CAMVID, results), "Limits")
    small = min(results["segment_sizes"], key=lambda group: group["mean_iou"])
    assert f"{small['mean_iou']:.1f} among segments up to {small['max_area']} pixels" in limits
    worst = min(results["per_class"].items(), key=lambda item: item[1]["iou"])
    assert f"{worst[0]} ({worst[1]['iou']:.1f})" in limits


def test_of_two_classes_or_groups_none_is_called_the_worst(results):
    """The worst of two says no more than the table above it."""
    results["per_class"] = dict(list(results["per_class"].items())[:2])
    results["segment_sizes"] = [results["segment_sizes"][0], results["segment_sizes"][-1]]
    limits = section(card_of(CAMVID, results), "Limits")
    assert "worst" not in limits and "on CamVid validation, but" in limits
    results["segment_sizes"] = results["segment_sizes"][:1]
    assert "by how much was not measured here" in section(card_of(CAMVID, results), "Limits")


def test_small_segments_that_are_found_better_are_not_called_worse(results):
    results["segment_sizes"] = [{"max_area": 9, "mean_iou": 50.0}, {"max_area": None, "mean_iou": 3.21}]
    limits = section(card_of(CAMVID, results), "Limits")
    assert "far less well" not in limits
    assert "50.0 among segments up to 9 pixels, 3.2 among the largest" in limits


def test_the_licence_follows_where_weights_come_from():
    model_id = "faseg-resnet50-ade20k"
    converted, trained = card_of(model_id).text, card_of(model_id, recipe=RECIPE).text
    tuned = card_of(model_id, recipe=RECIPE | {"model_name_or_path": "tester/other"}).text
    assert "converted from the authors' release" in converted and "trained on ADE20K, whose" not in converted
    assert "trained on ADE20K, whose" in trained and "converted from the authors" not in trained
    assert "trained on ADE20K, whose" in tuned and "converted from the authors' release" in tuned
    assert "| steps | 520 |" in trained and "By the paper's authors" in converted


def test_a_licence_that_the_hub_does_not_list_is_named_and_linked():
    card = card_of("faseg-dinov3-vit-base-ade20k", recipe=RECIPE)
    data, link = card.data.to_dict(), "https://ai.meta.com/resources/models-and-libraries/dinov3-license"
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "dinov3-license", link)
    assert "**Not for commercial use.**" in card.text, "ADE20K's images"
    assert "Licence of the weights: [dinov3-license](LICENSE)" in card.text
    facts = read_card(card_file("faseg-dinov3-vit-base-ade20k"))
    assert f"are licensed under dinov3-license: {link}\n" in licence_text(facts, "")
    free = replace(facts, dataset=facts.dataset | {"license": "CC BY 4.0"})
    assert not free.is_non_commercial and facts.is_non_commercial
    assert replace(free, license_name="acme-nc").is_non_commercial


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("eval.py --dataset_name /data/jane/camvid --tta", "eval.py --dataset_name path/to/camvid --tta"),
        ("eval.py --a ../up/b.yaml --c outputs/run", "eval.py --a path/to/b.yaml --c outputs/run"),
        ("scripts/eval.py --d user/name --e=~/x", "scripts/eval.py --d user/name --e=path/to/x"),
        ("eval.py --a '/x/y z'", "eval.py --a 'path/to/y z'"),
    ],
)
def test_commands_keep_no_places_of_this_machine(command, shown):
    assert without_local_paths(command) == shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": "mit"}, "unknown field licence"),
        ({"license": ...}, "missing field license"),
        ({"license": "other", "license_name": "x"}, "license other: give license_name and license_link to"),
        ({"license_name": "x"}, "license cc-by-nc-4.0: give license_name and license_link to"),
        ({"license_link": "https://x", "license_name": "x"}, "license cc-by-nc-4.0: give license_name and"),
        ({"dataset": {"name": "x"}}, "dataset lacks id"),
        ({"dataset": "x"}, "dataset holds 'x'"),
        ({"notice": {"stolen": "x"}}, "notice has ['stolen']"),
        ({"notice": {"trained": 5}}, "has a wrong field: Field 'notice['trained']' expected str, got int"),
        ({"license": 5}, "has a wrong field: Field 'license' expected str, got int"),
        ({"limits": "none"}, "has a wrong field: Field 'limits' expected a list, got str"),
        ({"dataset": dict.fromkeys(DATASET_FACTS, 5)}, "expected str, got int"),
        (None, "no mapping"),
    ],
)
def test_wrong_cards_are_named(change, message, tmp_path):
    facts = yaml.safe_load(card_file(CAMVID).read_text())
    facts = None if change is None else {key: value for key, value in (facts | change).items() if value is not ...}
    (tmp_path / "card.yaml").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=re.escape(message)):
        read_card(tmp_path / "card.yaml")
    assert Path(card_file(CAMVID)).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([1], "it holds list, not an object"),
        (None, "it holds null, not an object"),
        ({"per_class": ...}, "it has no 'per_class'"),
        ({"per_class": ["road"]}, "'per_class' expected a dict"),
        ({"per_class": {"road": 41.0}}, "'per_class['road']' expected a dict, got float"),
        ({"per_class": {"road": {"iou": "high"}}}, "got str (value: 'high')"),
        ({"protocol": None}, "'protocol'"),
        ({"command": ["eval.py"]}, "'command' expected str"),
        ({"mean_iou": "41"}, "'mean_iou' with value '41'"),
        ({"interval": [1, 2]}, "'interval'"),
        ({"interval": {"low": 1.0, "high": 2.0}}, "'interval' has no 'confidence'"),
        ({"segment_sizes": [{"mean_iou": 1.0}]}, "'segment_sizes' has no 'max_area'"),
        ({"protocol_lens": [None]}, "protocol_lens"),
        ({"project": "main"}, "'project'"),
        ({"parameters": 1.5}, "'parameters'"),
        ({"parameters": -1}, "'parameters' is -1, need 0 to"),
        ({"parameters": 10**400}, "'parameters' is 1000"),
        ({"images": True}, "'images' expected int, got bool"),
        ({"images": -1}, "'images' is -1, need 0 to"),
        ({"mean_iou": math.nan}, "'mean_iou' is nan, need 0 to 100"),
        ({"mean_boundary_iou": math.inf}, "'mean_boundary_iou' is inf, need 0 to 100"),
        ({"mean_accuracy": 101}, "'mean_accuracy' is 101, need 0 to 100"),
        ({"overall_accuracy": 10**400}, "'overall_accuracy' is 1000"),
        ({"per_class": {"road": {"iou": math.nan}}}, "'iou' of class 'road' is nan"),
        ({"per_class": {"road": {"iou": 1.0, "accuracy": -1}}}, "'accuracy' of class 'road' is -1"),
        ({"interval": {"low": 1.0, "high": 2.0, "confidence": None}}, "'confidence'"),
        ({"interval": {"low": 1.0, "high": 2.0, "confidence": "95%"}}, "'confidence'"),
        ({"interval": {"low": 1.0, "high": 2.0, "confidence": 95}}, "'confidence' of 'interval' is 95, need 0 to 1"),
        ({"interval": {"low": "1", "high": 2.0, "confidence": 0.95}}, "'low'"),
        ({"interval": {"low": 1.0, "high": math.nan, "confidence": 0.95}}, "'high' of 'interval' is nan"),
        ({"segment_sizes": [{"mean_iou": 1.0, "max_area": "big"}]}, "'max_area'"),
        ({"segment_sizes": [{"mean_iou": 1.0, "max_area": 1.5}]}, "'max_area'"),
        ({"segment_sizes": [{"mean_iou": math.nan, "max_area": 1}]}, "'mean_iou' of 'segment_sizes' is nan"),
        ({"protocol_lens": [{"habit": 5}]}, "'protocol_lens' has a wrong field: Field 'habit' expected str"),
        ({"protocol_lens": [{"habit": "own", "detectron2": "high"}]}, "'detectron2'"),
        ({"protocol_lens": [{"habit": "own", "detectron2": 200}]}, "'detectron2' of 'protocol_lens' is 200"),
        ({"protocol": {"name": 5}}, "'protocol' has a wrong field: Field 'name' expected str"),
        ({"project": {"commit": 5}}, "'project' has a wrong field: Field 'commit' expected str"),
        ({"dataset_revision": {"sha256": 5}}, "'dataset_revision' has a wrong field: Field 'sha256' expected str"),
        ({"weights_sha256": 5}, "'weights_sha256' expected str"),
    ],
)  # fmt: skip
def test_odd_results_files_are_named(change, message, results, tmp_path):
    odd = {k: v for k, v in (results | change).items() if v is not ...} if isinstance(change, dict) else change
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    with pytest.raises(UserError, match=f"odd.json is no results file: .*{re.escape(message)}"):
        read_results(tmp_path / "odd.json")


@pytest.mark.parametrize("key", sorted(RESULTS.keys() - set(NEEDED)))
def test_what_was_not_measured_may_be_null_or_lacking(key, results):
    results[key] = None
    assert results_fault(results) is None
    shown = str(card_of(CAMVID, results))
    del results[key]
    assert results_fault(results) is None and str(card_of(CAMVID, results)) == shown


def test_a_file_without_a_measured_class_names_no_worst_ones(results):
    assert "The classes found worst" in card_of(CAMVID, results).text
    results["per_class"] = {"road": {"iou": None, "accuracy": None}}
    assert results_fault(results) is None and "found worst" not in card_of(CAMVID, results).text


def test_an_interval_without_ends_is_said_to_be(results):
    """None of the images had a class to find."""
    results["interval"] |= {"low": None, "high": None}
    assert "not measured to not measured" in section(card_of(CAMVID, results), "Measured")


@pytest.mark.parametrize(("task", "figure", "column"), [
    ("instance", "average_precision", "AP"), ("panoptic", "panoptic_quality", "PQ"),
])  # fmt: skip
def test_a_card_shows_the_figures_of_its_task(results, task, figure, column):
    others = {key: results[key] for key in NEEDED if key != "per_class"}
    per_class = {f"class {n}": {figure: 10.0 * n, "average_precision_50": 80.0} for n in range(1, 6)}
    found = others | {"task": task, figure: 41.26, "average_precision_50": 60.0, "per_class": per_class}
    assert results_fault(found) is None and results_fault(found | {figure: 101}) is not None
    card = card_of(CAMVID, found)
    (main,) = (result for result in card.data.eval_results if result.metric_type == figure)
    assert (main.metric_value, main.task_name) == (41.3, f"{task.capitalize()} segmentation")
    assert figure in card.data.metrics and "mean_iou" not in card.data.metrics
    measured = section(card, "Measured")
    assert "| 41.3 |" in measured and f"| class | {column} |" in measured and "mean IoU" not in measured
    assert f"worst, by {column} on" in card.text and "class 1 (10.0)" in card.text
