"""The FASeg models; importing this package registers them with transformers' auto classes."""

from transformers import (
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

import configuration  # noqa: F401  (registers the configurations)

from .configuration_faseg import FASegConfig
from .modeling_faseg import (
    FASegForUniversalSegmentation,
    FASegForUniversalSegmentationOutput,
    FASegModel,
    FASegModelOutput,
    FASegPreTrainedModel,
)


AutoModel.register(FASegConfig, FASegModel, exist_ok=True)
for _auto_class in (
    AutoModelForUniversalSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForImageSegmentation,
):
    _auto_class.register(FASegConfig, FASegForUniversalSegmentation, exist_ok=True)

__all__ = [
    "FASegForUniversalSegmentation",
    "FASegForUniversalSegmentationOutput",
    "FASegModel",
    "FASegModelOutput",
    "FASegPreTrainedModel",
]
