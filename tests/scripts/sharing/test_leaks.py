"""What is shared tells nothing of the machine that it was made on."""

from dataclasses import fields

from scripts.cli.parser import ReadPath
from scripts.sharing.leaks import PLACES, scrubbed_recipe
from scripts.training.arguments import TrainArguments


def test_every_path_of_training_is_cut_to_its_name(tmp_path):
    paths = {field.name for field in fields(TrainArguments) if field.metadata.get("action") is ReadPath}
    assert paths <= set(PLACES) and "warm_start" in paths
    scrubbed = scrubbed_recipe({name: str(tmp_path / "here") for name in paths})
    assert scrubbed == dict.fromkeys(paths, "here")
