"""Licences of weights: what a Mask2Former's weights carry into all that starts from them, up to the exported card."""

import json

import pytest
import yaml
from mask2former_models import write_mask2former
from tiny_models import TINY_RESNET
from transformers import Mask2FormerConfig

from configuration import FASegConfig
from scripts import convert_checkpoint, export_hub
from scripts.cli.errors import UserError
from scripts.models.licences import check_keeps_licence, inherited, origin_notice
from scripts.models.warm_start import WarmStart
from scripts.sharing import clean_load
from scripts.sharing.cards import HUB_CARDS


CARD = HUB_CARDS / "faseg-mobilenetv2-camvid" / "card.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Mask2Former whose card names a licence."""
    written = write_mask2former(tmp_path_factory.mktemp("model") / "tiny-semantic", TINY_RESNET)
    (written / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\nA model.\n")
    return written


@pytest.mark.parametrize("name", ["facebook/mask2former-swin-tiny-ade-semantic", "facebook/mask2former-resnet-50"])
def test_the_model_zoo_is_not_for_commercial_use(name, tmp_path):
    """Whatever its cards say, also of a folder that was saved from it."""
    fields = {"license": "cc-by-nc-4.0", "base_model": name}
    assert inherited(name, Mask2FormerConfig()) == fields
    config = Mask2FormerConfig()
    config._name_or_path = name
    assert inherited(str(tmp_path), config) == fields


def test_a_folder_says_its_licence_in_its_card_or_not_at_all(folder, tmp_path):
    assert inherited(str(folder), Mask2FormerConfig()) == {"license": "cc-by-nc-4.0"}
    assert inherited(str(tmp_path), Mask2FormerConfig()) == {}


@pytest.mark.parametrize("given", ["cc-by-nc-4.0", "CC-BY-NC-SA-4.0"])
def test_a_licence_for_non_commercial_use_is_kept(given):
    check_keeps_licence(given, FASegConfig(license="cc-by-nc-4.0"))
    check_keeps_licence("mit", FASegConfig(license="apache-2.0"))
    check_keeps_licence("mit", FASegConfig())
    with pytest.raises(
        UserError, match=r"license: mit, but the weights of the checkpoint that .* write license: cc-by"
    ):
        check_keeps_licence("mit", FASegConfig(license="cc-by-nc-4.0"))


def test_what_is_said_of_the_origin():
    assert origin_notice(FASegConfig()) == ""
    found = origin_notice(FASegConfig(license="cc-by-nc-4.0", base_model="facebook/mask2former-a"))
    assert found.startswith("It starts from `facebook/mask2former-a`, whose weights are licensed under cc-by-nc-4.0")


def test_a_warm_start_keeps_the_licence(folder):
    assert WarmStart(str(folder), []).config().license == "cc-by-nc-4.0"


@pytest.mark.parametrize("warm_start", [False, True])
def test_the_exported_card_keeps_it(folder, warm_start, command, tmp_path, monkeypatch):
    monkeypatch.setattr(clean_load, "load_back", lambda *_: 0.0)  # a process of several seconds
    converted = tmp_path / "converted"
    flags = ["--warm_start"] if warm_start else []
    assert command(convert_checkpoint, "--mask2former", folder, "--output_dir", converted, *flags)[0] == 0
    assert json.loads((converted / "config.json").read_text())["license"] == "cc-by-nc-4.0"
    card, facts = tmp_path / "card.yaml", yaml.safe_load(CARD.read_text())
    named = ["--model_name_or_path", converted, "--model_id", "streets", "--card", card, "--dry_run"]
    for license_name, code in (("apache-2.0", 2), ("cc-by-nc-4.0", 0)):
        card.write_text(yaml.safe_dump({**facts, "license": license_name}))
        exported = tmp_path / license_name
        found, _, errors = command(export_hub, *named, "--output_dir", exported)
        assert found == code, errors
        if code:
            assert "write license: cc-by-nc-4.0" in errors[-1] and not exported.exists()
            continue
        for name in ("README.md", "LICENSE"):
            assert "It starts from weights that are licensed under cc-by-nc-4.0" in (exported / name).read_text()
