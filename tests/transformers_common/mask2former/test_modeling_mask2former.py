"""Mask2Former under the common tests: the measure that FASeg is held to."""

import unittest
from typing import Any

from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerModel

from universal_segmentation import UniversalSegmentationModelTester, UniversalSegmentationModelTests


class Mask2FormerModelTester(UniversalSegmentationModelTester):
    config_class = Mask2FormerConfig
    model_class = Mask2FormerModel
    segmentation_class = Mask2FormerForUniversalSegmentation
    num_hidden_layers = 2

    def get_config(self) -> Any:
        return Mask2FormerConfig(
            backbone_config=self.get_backbone_config(),
            hidden_dim=self.hidden_dim,
            feature_size=self.hidden_dim,
            mask_feature_size=self.hidden_dim,
            num_attention_heads=4,
            num_queries=self.num_queries,
            num_labels=self.num_labels,
            encoder_layers=2,
            encoder_feedforward_dim=16,
            decoder_layers=2,
            dim_feedforward=32,
            train_num_points=256,
        )


class Mask2FormerModelTest(UniversalSegmentationModelTests, unittest.TestCase):
    model_tester_class = Mask2FormerModelTester
    all_model_classes = (Mask2FormerModel, Mask2FormerForUniversalSegmentation)
