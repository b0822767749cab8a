"""FASeg's processors, torchvision and PIL, under Transformers' common tests."""

import unittest

import numpy as np
from PIL import Image

from image_processing import FASegImageProcessor, FASegImageProcessorPil
from modeling_faseg.modeling_faseg import FASegForUniversalSegmentationOutput
from universal_image_processing import UniversalImageProcessingTester, UniversalImageProcessingTests


class FASegImageProcessingTester(UniversalImageProcessingTester):
    output_class = FASegForUniversalSegmentationOutput

    def _get_image_processing_classes(self):
        # The base class looks them up by folder name in Transformers' own table.
        return {"torchvision": FASegImageProcessor, "pil": FASegImageProcessorPil}

    def expected_output_image_shape(self, images):
        # The reference rounds the longer side half up, where Transformers' resize rule cuts it.
        sizes = [image.size[::-1] if isinstance(image, Image.Image) else self._height_width(image) for image in images]
        scaled = [[int(side * self.size["shortest_edge"] / min(size) + 0.5) for side in size] for size in sizes]
        return self.num_channels, max(height for height, _ in scaled), max(width for _, width in scaled)

    @staticmethod
    def _height_width(image):
        return image.shape[:2] if isinstance(image, np.ndarray) else image.shape[1:]


class FASegImageProcessingTest(UniversalImageProcessingTests, unittest.TestCase):
    image_processor_tester_class = FASegImageProcessingTester
