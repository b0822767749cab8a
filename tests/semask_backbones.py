"""SeMask's backbone alone, as SeMask's copy of Mask2Former has it: what no command converts."""

from scripts.models.parameter_names import take_tensors
from scripts.models.semask_names import official_source


def convert_backbone(official, backbone):
    """State dict of a `SeMaskSwinBackbone` of official names without the prefix `backbone.`."""
    expected = backbone.state_dict()
    sources = {name: official_source(f"backbone.{name}") for name in expected}
    return take_tensors({f"backbone.{name}": value for name, value in official.items()}, expected, sources)
