"""Licences of weights: what a Mask2Former's weights carry into all that starts from them, up to the exported card."""

import json
import shutil

import pytest
import yaml
from mask2former_models import write_mask2former
from tiny_models import TINY_RESNET
from transformers import Mask2FormerConfig

from configuration import FASegConfig
from scripts import convert_checkpoint, export_hub
from scripts.cli.errors import UserError
from scripts.models.arguments import ModelArguments
from scripts.models.licences import (
    check_keeps_licence,
    inherited,
    is_non_commercial,
    license_of,
    origin_notice,
    origin_of,
)
from scripts.models.loading import build_config, read_config
from scripts.models.warm_start import WarmStart
from scripts.sharing import clean_load
from scripts.sharing.card_facts import HUB_CARDS


CARD = HUB_CARDS / "faseg-mobilenetv2-camvid" / "card.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Mask2Former whose card names a licence."""
    written = write_mask2former(tmp_path_factory.mktemp("model") / "tiny-semantic", TINY_RESNET)
    (written / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nA model.\n")
    return written


@pytest.fixture
def spoilt(folder, tmp_path):
    """A copy whose files a test may change."""
    shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / folder.name


ZOO = "facebook/mask2former-swin-tiny-ade-semantic"
NC = {"license": "cc-by-nc-4.0", "base_model": ZOO}


@pytest.mark.parametrize(
    "name",
    [
        ZOO,
        "mask2former-swin-tiny-ade-semantic",  # a clone of it
        "/cache/models--facebook--mask2former-swin-tiny-ade-semantic/snapshots/0123",
    ],
)
def test_the_model_zoo_is_not_for_commercial_use(name):
    """Whatever its cards say."""
    assert inherited(name, Mask2FormerConfig()) == NC
    assert license_of(name, Mask2FormerConfig()) == "cc-by-nc-4.0"


def test_a_folder_may_tell_what_it_was_saved_from(spoilt):
    """As configurations of transformers 4 do."""
    file = spoilt / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "_name_or_path": ZOO}))
    assert origin_of(read_config(ModelArguments(model_name_or_path=str(spoilt)), str(spoilt))) == NC


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cc-by-nc-sa-4.0", True), ("fair-noncommercial-research-license", True), ("acme-nc", True),
        ("terms of use (non-commercial research)", True), ("apache-2.0", False), ("mit", False), ("ncsa", False),
    ],
)  # fmt: skip
def test_licences_that_rule_out_commercial_use_are_known_by_name(name, expected):
    assert is_non_commercial(name) == expected


def test_a_folder_says_its_licence_in_its_card_or_not_at_all(folder, tmp_path):
    assert inherited(str(folder), Mask2FormerConfig()) == {"license": "cc-by-nc-4.0"}
    assert inherited(str(tmp_path), Mask2FormerConfig()) == {}


@pytest.mark.parametrize(
    "card",
    [
        b"---\nlicense: [mit, apache-2.0]\n---\n",
        b"---\n- a\n---\n",
        b"---\nlicense: {\n---\n",
        b"---\nlicense: \xff\n---\n",
        b"---\nlicense: '<script>'\n---\n",
        b"",
    ],
)
def test_an_odd_card_names_no_licence(card, spoilt):
    (spoilt / "README.md").write_bytes(card)
    assert origin_of(read_config(ModelArguments(model_name_or_path=str(spoilt)), str(spoilt))) == {}


def test_an_architecture_alone_has_no_licence(folder, tmp_path, command):
    assert origin_of(build_config(ModelArguments(config_name=str(folder)))) == {}
    assert command(convert_checkpoint, "--mask2former", folder, "--output_dir", tmp_path / "converted")[0] == 0
    assert origin_of(build_config(ModelArguments(config_name=str(tmp_path / "converted")))) == {}
    weights = ModelArguments(model_name_or_path=str(tmp_path / "converted"))
    assert origin_of(build_config(weights)) == {"license": "cc-by-nc-4.0"}


@pytest.mark.parametrize("given", ["cc-by-nc-4.0", "CC-BY-NC-SA-4.0"])
def test_a_licence_for_non_commercial_use_is_kept(given):
    check_keeps_licence(given, FASegConfig(license="cc-by-nc-4.0"))
    check_keeps_licence("mit", FASegConfig(license="apache-2.0"))
    check_keeps_licence("mit", FASegConfig())
    with pytest.raises(UserError, match=r"license: mit, but by config.json the weights of the check.* are"):
        check_keeps_licence("mit", FASegConfig(license="cc-by-nc-4.0"))


def test_what_is_said_of_the_origin():
    assert origin_notice(FASegConfig()) == ""
    assert origin_notice(FASegConfig(**NC)) == (
        f"The weights come from `{ZOO}` under cc-by-nc-4.0, and what is trained from them stays so."
    )
    assert origin_notice(FASegConfig(license="mit")) == "The weights come from another checkpoint under mit."
    hostile = FASegConfig(license="<script>\n# mine", base_model="a/b` [x](y)")
    assert origin_notice(hostile) == "" and origin_of(hostile) == {}


def test_a_warm_start_keeps_the_licence(folder):
    start = WarmStart(str(folder), [])
    config = start.config()
    assert config.license == "cc-by-nc-4.0"
    assert "(licence of its weights: cc-by-nc-4.0)" in start.model(config)[1]


@pytest.mark.parametrize("warm_start", [False, True])
def test_the_exported_card_keeps_it(folder, warm_start, command, tmp_path, monkeypatch):
    monkeypatch.setattr(clean_load, "load_back", lambda *_: 0.0)  # a process of several seconds
    converted = tmp_path / "converted"
    flags = ["--warm_start"] if warm_start else []
    assert command(convert_checkpoint, "--mask2former", folder, "--output_dir", converted, *flags)[0] == 0
    assert json.loads((converted / "config.json").read_text())["license"] == "cc-by-nc-4.0"
    card, facts = tmp_path / "card.yaml", yaml.safe_load(CARD.read_text())
    facts |= {"classes": None, "architecture": None}
    named = ["--model_name_or_path", converted, "--model_id", "streets", "--card", card, "--dry_run"]
    for license_name, code in (("apache-2.0", 2), ("cc-by-nc-4.0", 0)):
        card.write_text(yaml.safe_dump({**facts, "license": license_name}))
        exported = tmp_path / license_name
        found, _, errors = command(export_hub, *named, "--output_dir", exported)
        assert found == code, errors
        if code:
            assert "are licensed under cc-by-nc-4.0, and what" in errors[-1] and not exported.exists()
            continue
        for name in ("README.md", "LICENSE"):
            assert "come from another checkpoint under cc-by-nc-4.0, and what" in (exported / name).read_text()
