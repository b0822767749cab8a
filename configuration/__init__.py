"""Configurations of the models; importing this package registers them with `AutoConfig`."""

from transformers import AutoConfig

from .configuration_faseg import FASegConfig


AutoConfig.register("faseg", FASegConfig, exist_ok=True)

__all__ = ["FASegConfig"]
