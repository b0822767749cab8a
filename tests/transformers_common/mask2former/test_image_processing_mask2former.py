"""Mask2Former's processors under the common tests: the measure that FASeg's are held to."""

import unittest

from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from universal_image_processing import UniversalImageProcessingTester, UniversalImageProcessingTests


class Mask2FormerImageProcessingTester(UniversalImageProcessingTester):
    output_class = Mask2FormerForUniversalSegmentationOutput


class Mask2FormerImageProcessingTest(UniversalImageProcessingTests, unittest.TestCase):
    image_processor_tester_class = Mask2FormerImageProcessingTester
