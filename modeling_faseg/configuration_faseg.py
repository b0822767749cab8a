"""Bridge to the configuration package; an export writes the real file in its place."""

from configuration.configuration_faseg import FASegConfig  # noqa: F401
