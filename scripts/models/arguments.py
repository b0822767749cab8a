"""The flags that name a model."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelArguments:
    """The flags that name a model, shared by the commands."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Checkpoint folder or Hub id."})
    config_name: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a config.json: its architecture, new weights."}
    )
    model_type: str = field(default="faseg", metadata={"help": "Configuration used when neither of the two is given."})
    config_overrides: list[str] = field(
        default_factory=list,
        metadata={"help": "key=value of any configuration field; dots reach into it.", "action": "extend"},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the checkpoint."})
