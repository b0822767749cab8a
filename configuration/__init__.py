"""Configurations of the models; importing this package registers them with `AutoConfig`."""

from transformers import AutoConfig

from .configuration_faseg import FASegConfig
from .configuration_qlseg import QLSegConfig
from .configuration_semask import SeMaskConfig, SeMaskSwinConfig


AutoConfig.register("faseg", FASegConfig, exist_ok=True)
AutoConfig.register("qlseg", QLSegConfig, exist_ok=True)
AutoConfig.register("semask", SeMaskConfig, exist_ok=True)

__all__ = ["FASegConfig", "QLSegConfig", "SeMaskConfig", "SeMaskSwinConfig"]
