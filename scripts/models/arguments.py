"""The flags that name a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from scripts.cli.parser import flag, path_flag


@dataclass
class ModelArguments:
    """The flags that name a model, shared by the commands."""

    checkpoint_flag: ClassVar[str] = "--model_name_or_path"  # what errors call the flag of the checkpoint

    model_name_or_path: str | None = path_flag("Folder of the checkpoint, or its name on the Hub (user/name).")
    config_name: str | None = path_flag(
        "Folder or name on the Hub of a config.json: a model of this architecture, with new weights."
    )
    model_type: str = flag(
        "faseg",
        "Type of the model that is built, with its default configuration, where neither --model_name_or_path nor "
        "--config_name is given: faseg, semask or qlseg.",
    )
    config_overrides: list[str] = flag(
        [],
        "Fields of the configuration to change, as key=value; a dot reaches into a nested configuration: "
        "num_queries=50 backbone_config.depths=[2,2,2,2].",
        action="extend",
    )
    trust_remote_code: bool = flag(False, "Allow the Python code that comes with the checkpoint to run.")


class WarmStartArguments(ModelArguments):
    """The checkpoint that a warm start is from."""

    checkpoint_flag = "--warm_start"


class Mask2FormerArguments(ModelArguments):
    """The checkpoint that is converted."""

    checkpoint_flag = "--mask2former"
