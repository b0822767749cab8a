"""Images and label maps -> model inputs; logits -> label maps and segments. Importing registers the Auto classes."""

from transformers import AutoImageProcessor

from configuration import FASegConfig, QLSegConfig, SeMaskConfig

from .image_processing_faseg import FASegImageProcessor
from .image_processing_pil_faseg import FASegImageProcessorPil


FASegImageProcessor.register_for_auto_class("AutoImageProcessor")
FASegImageProcessorPil.register_for_auto_class("AutoImageProcessor")
for _config_class in (FASegConfig, QLSegConfig, SeMaskConfig):
    AutoImageProcessor.register(
        _config_class,
        image_processor_classes={"torchvision": FASegImageProcessor, "pil": FASegImageProcessorPil},
        exist_ok=True,
    )

__all__ = ["FASegImageProcessor", "FASegImageProcessorPil"]
