"""Bridge to the configuration package; an export writes the real file in its place."""

from configuration.configuration_semask import SeMaskConfig, SeMaskSwinConfig  # noqa: F401
