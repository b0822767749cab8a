"""FASeg proper, started from a Mask2Former: its weights under DFPQ and HRCA, which it knows nothing of.

Mask2Former's decoder attends to three levels in turn, FASeg's to a fourth after them (HRCA). Layer `l` of round `r`
keeps its level: it is layer `3r + l` there and `4r + l` here; an HRCA layer starts as a copy of the layer before it.
See docs/models.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING, PreTrainedConfig, PreTrainedModel

from configuration import FASegConfig
from scripts.cli.errors import UserError
from scripts.cli.parser import parse_overrides
from scripts.models.arguments import ModelArguments, WarmStartArguments
from scripts.models.input_channels import adapt_first_convolution
from scripts.models.licences import origin_of
from scripts.models.loading import LABEL_DEPENDENT, build_config, build_model, listed, read_config, with_changes
from scripts.models.mask2former import without_loading_report
from scripts.models.tasks import SEMANTIC


LEVELS = 3  # that a Mask2Former's decoder attends to
LAYER = re.compile(r"model\.transformer_decoder\.layers\.(\d+)\.(.*)")
LEVEL_EMBEDDINGS = "model.transformer_decoder.level_embed.weight"
# What a Mask2Former has not.
NEW = re.compile(
    r"model\.transformer_decoder\.(focus_queries\.|input_projections\.3\.)"
    r"|model\.pixel_decoder\.(position_encodings\.|input_projections\.3\.)"
)
PARTS = (
    ("backbone", r"model\.backbone\."),
    ("position encodings", r"model\.pixel_decoder\.position_encodings\."),
    ("finest level's projections", r".*input_projections\.3\."),
    ("pixel decoder", r"model\.pixel_decoder\."),
    ("focus queries (DFPQ)", r"model\.transformer_decoder\.focus_queries\."),
    ("queries, masks, levels", r"model\.transformer_decoder\."),
    ("classes", r".*"),
)


class WarmStart:
    """A Mask2Former, or a FASeg without both ideas, as the start of a FASeg with them.

    Args:
        name: folder of the checkpoint or its name on the Hub.
        overrides: fields of the new model's configuration to change, as `--config_overrides`.
        task: what the new model is for, where no override says so.
        source: the class of arguments, which knows what errors call the flag.
        trust_remote_code: whether the checkpoint's own code may run.
    Raises:
        UserError: it cannot be read, or has one of the ideas already.
    """

    def __init__(
        self,
        name: str,
        overrides: list[str],
        task: str | None = None,
        trust_remote_code: bool = False,
        source: type[ModelArguments] = WarmStartArguments,
    ):
        if task and "task" not in parse_overrides(overrides):
            overrides = [*overrides, f"task={task}"]
        self.name, self.overrides = name, overrides
        self.processor_settings = {name: value for name, value in parse_overrides(overrides).items() if name == "task"}
        self.source = source(model_name_or_path=name, config_overrides=overrides, trust_remote_code=trust_remote_code)
        self.plain = read_config(self.source, name)
        if not isinstance(self.plain, FASegConfig):
            raise UserError(f"{self.source.checkpoint_flag} {name}: it is a {self.plain.model_type}, no Mask2Former")
        if self.plain.use_dynamic_positional_queries or self.plain.use_high_resolution_cross_attention:
            raise UserError(
                f"{self.source.checkpoint_flag} {name}: it has DFPQ or HRCA already: train.py takes it as "
                "--model_name_or_path"
            )

    def config(self, id2label: dict[int, str] | None = None) -> PreTrainedConfig:
        """Configuration of the new model."""
        values = {key: value for key, value in self.plain.to_dict().items() if key != "transformers_version"}
        values |= {
            "use_dynamic_positional_queries": True,
            "use_high_resolution_cross_attention": True,
            "decoder_layers": layers_here(cast(FASegConfig, self.plain).decoder_layers),
        }
        return with_changes(FASegConfig, values, self.overrides, id2label)

    def model(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, str]:
        """The new model, and a table of what came from where.

        Raises:
            UserError: the checkpoint is unreadable, or too unlike the configuration.
        """
        state_dict = build_model(self.source, self.plain, new_classes=False).state_dict()
        taken = carried_over(state_dict, cast(FASegConfig, self.plain), cast(FASegConfig, config))
        model_class: Any = MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING[type(config)]
        try:
            with without_loading_report():  # the table says more
                model, info = model_class.from_pretrained(
                    None, state_dict=taken, config=config, ignore_mismatched_sizes=True, output_loading_info=True
                )
        except (OSError, ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
            raise UserError(f"{self.source.checkpoint_flag} {self.name}: {error}") from error
        new = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
        shapes = {key: (found, wanted) for key, found, wanted in info["mismatched_keys"]}
        new -= adapt_first_convolution(model, shapes, lambda: taken)
        if unlike := {key for key in new if not NEW.match(key) and not LABEL_DEPENDENT.search(key)}:
            flag = self.source.checkpoint_flag
            raise UserError(f"{flag} {self.name}: missing or of another shape: {listed(unlike)}")
        decoder = model.model.transformer_decoder
        if decoder.focus_queries is not None:
            pass_on(decoder.focus_queries, decoder.queries_embedder.weight)
        return model, table(self.name, model, new, cast(FASegConfig, self.plain).decoder_layers)


class PlainStart:
    """The model that the flags name, or a new one of the configuration that they name; used as a `WarmStart` is."""

    def __init__(self, arguments: ModelArguments):
        self.source = arguments
        self.processor_settings: dict[str, Any] = {}

    def config(self, id2label: dict[int, str] | None = None) -> PreTrainedConfig:
        """Its configuration."""
        return build_config(self.source, id2label)

    def model(self, config: PreTrainedConfig) -> tuple[PreTrainedModel, str]:
        """The model, and nothing that is to be said of it."""
        return build_model(self.source, config), ""


def start_of(arguments: Any) -> WarmStart | PlainStart:
    """What training starts from by its flags; a warm start is for label maps unless `--task` says otherwise."""
    if not arguments.warm_start:
        return PlainStart(arguments)
    return WarmStart(arguments.warm_start, arguments.config_overrides, SEMANTIC, arguments.trust_remote_code)


def pass_on(focus_queries: Any, learned: Tensor) -> None:
    """Lets the layers of DFPQ hand on what they get: the learned positional queries, which Mask2Former reads, plus the
    positions where each query looked.

    Two linear layers with a ReLU between them do so where the first lifts its values above zero and the second takes
    that back. On CamVid that loses less than new weights, before the first step and after a hundred (docs/models.md).

    Args:
        learned: `(Q, C)` learned positional queries; sines, which are added to them, lie between -1 and 1.
    """
    with torch.no_grad():
        lift = float(learned.abs().max()) + 1
        for layer, bias in ((focus_queries.fc1, lift), (focus_queries.fc2, -lift)):
            torch.nn.init.eye_(layer.weight)
            layer.bias.fill_(bias)


def layers_here(there: int) -> int:
    """How many decoder layers a FASeg has that keeps all of a Mask2Former's.

    Whole rounds are followed by one more layer on the coarsest level, as in the released models: 13 for nine.
    """
    rounds, rest = divmod(there, LEVELS)
    return rounds * (LEVELS + 1) + max(rest, 1)


def origin(index: int, config: FASegConfig, there: int) -> int:
    """Layer of a Mask2Former of `there` layers that layer `index` starts from."""
    levels = LEVELS + 1 if config.use_high_resolution_cross_attention else LEVELS
    turn, level = divmod(index, levels)
    found = LEVELS * turn + min(level, LEVELS - 1)
    while found >= there:  # past its end: its last layer of that level
        found -= LEVELS
    return found if found >= 0 else there - 1


def carried_over(state_dict: Mapping[str, Tensor], plain: FASegConfig, config: FASegConfig) -> dict[str, Tensor]:
    """A plain model's tensors under the names of a FASeg with both ideas."""
    copies: dict[int, list[int]] = {}
    for index in sorted(set(config.decoder_layer_weights)):
        copies.setdefault(origin(index, config, plain.decoder_layers), []).append(index)
    taken = {}
    for name, value in state_dict.items():
        if match := LAYER.fullmatch(name):
            for index in copies.get(int(match[1]), []):
                taken[f"model.transformer_decoder.layers.{index}.{match[2]}"] = value.clone()
        else:
            taken[name] = value
    if config.use_high_resolution_cross_attention:  # the fourth level is read by copies of the third's layers
        rows = taken[LEVEL_EMBEDDINGS]
        taken[LEVEL_EMBEDDINGS] = torch.cat((rows, rows[-1:]))
    return taken


def table(name: str, model: PreTrainedModel, new: set[str], there: int) -> str:
    """What of the model came from where, a line per part."""
    config = cast(FASegConfig, model.config)
    counts: Counter[tuple[str, str]] = Counter()
    for key, value in model.named_parameters():
        if match := LAYER.fullmatch(key):
            index = int(match[1])
            row = (f"decoder layer {index}", f"layer {origin(index, config, there)}")
        else:
            part = next(part for part, pattern in PARTS if re.match(pattern, key))
            row = (part, "new" if key in new else "as it is")
        counts[row] += value.numel()
    total = sum(counts.values())
    carried = sum(count for (_, source), count in counts.items() if source != "new")
    licence = origin_of(config).get("license", "unknown")
    lines = [
        f"warm start from {name} (licence of its weights: {licence}): {100 * carried / total:.1f} % of {total:,} "
        "parameters are taken over"
    ]
    return "\n".join([*lines, *(f"  {part:<26} {source:<9} {count:>12,}" for (part, source), count in counts.items())])
