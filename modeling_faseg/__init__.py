"""The FASeg, QLSeg and SeMask models; importing this package registers them with transformers' auto classes."""

from transformers import (
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
)

import configuration  # noqa: F401  (registers the configurations)

from .backbone_semask import SeMaskBackboneOutput, SeMaskSwinBackbone
from .configuration_faseg import FASegConfig
from .configuration_qlseg import QLSegConfig
from .configuration_semask import SeMaskConfig
from .deformable_attention import set_sampling_form
from .modeling_faseg import (
    FASegForUniversalSegmentation,
    FASegForUniversalSegmentationOutput,
    FASegModel,
    FASegModelOutput,
    FASegPreTrainedModel,
)
from .modeling_qlseg import (
    QLSegForSemanticSegmentation,
    QLSegForSemanticSegmentationOutput,
    QLSegModel,
    QLSegModelOutput,
    QLSegPreTrainedModel,
)
from .modeling_semask import SeMaskForSemanticSegmentation, SeMaskPreTrainedModel, SeMaskSemanticSegmenterOutput


AutoModel.register(FASegConfig, FASegModel, exist_ok=True)
AutoModel.register(QLSegConfig, QLSegModel, exist_ok=True)
for _auto_class in (
    AutoModelForUniversalSegmentation,
    AutoModelForSemanticSegmentation,
    AutoModelForImageSegmentation,
):
    _auto_class.register(FASegConfig, FASegForUniversalSegmentation, exist_ok=True)
    _auto_class.register(QLSegConfig, QLSegForSemanticSegmentation, exist_ok=True)
    _auto_class.register(SeMaskConfig, SeMaskForSemanticSegmentation, exist_ok=True)

__all__ = [
    "FASegForUniversalSegmentation",
    "FASegForUniversalSegmentationOutput",
    "FASegModel",
    "FASegModelOutput",
    "FASegPreTrainedModel",
    "QLSegForSemanticSegmentation",
    "QLSegForSemanticSegmentationOutput",
    "QLSegModel",
    "QLSegModelOutput",
    "QLSegPreTrainedModel",
    "SeMaskBackboneOutput",
    "SeMaskForSemanticSegmentation",
    "SeMaskPreTrainedModel",
    "SeMaskSemanticSegmenterOutput",
    "SeMaskSwinBackbone",
    "set_sampling_form",
]
