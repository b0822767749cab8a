"""FASeg under Transformers' common tests."""

import unittest
from typing import Any

from configuration import FASegConfig
from modeling_faseg import FASegForUniversalSegmentation, FASegModel
from universal_segmentation import (
    GradientsOfALoss,
    UniversalSegmentationModelTester,
    UniversalSegmentationModelTests,
)


class FASegModelTester(UniversalSegmentationModelTester):
    config_class = FASegConfig
    model_class = FASegModel
    segmentation_class = FASegForUniversalSegmentation

    def get_config(self) -> Any:
        return FASegConfig(
            backbone_config=self.get_backbone_config(),
            hidden_dim=self.hidden_dim,
            feature_size=self.hidden_dim,
            mask_feature_size=self.hidden_dim,
            num_attention_heads=4,
            num_queries=self.num_queries,
            num_labels=self.num_labels,
            encoder_layers=2,
            encoder_feedforward_dim=16,
            # One round over the four levels: the last one is the high-resolution cross-attention.
            decoder_layers=4,
            high_resolution_reduction=8,
            dim_feedforward=32,
            train_num_points=256,
        )


class FASegModelTest(GradientsOfALoss, UniversalSegmentationModelTests, unittest.TestCase):
    model_tester_class = FASegModelTester
    all_model_classes = (FASegModel, FASegForUniversalSegmentation)
