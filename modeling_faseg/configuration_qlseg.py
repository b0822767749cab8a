"""Bridge to the configuration package; an export writes the real file in its place."""

from configuration.configuration_qlseg import QLSegConfig  # noqa: F401
