"""QLSeg under Transformers' common tests."""

import unittest
from typing import Any

import torch
from transformers.testing_utils import torch_device

from configuration import QLSegConfig
from modeling_faseg import QLSegForSemanticSegmentation, QLSegModel
from universal_segmentation import (
    GradientsOfALoss,
    UniversalSegmentationModelTester,
    UniversalSegmentationModelTests,
)


class QLSegModelTester(UniversalSegmentationModelTester):
    config_class = QLSegConfig
    model_class = QLSegModel
    segmentation_class = QLSegForSemanticSegmentation
    mask_stride = 16

    def __init__(self, parent: unittest.TestCase):
        super().__init__(parent)
        self.num_queries = self.num_labels  # one per class

    def get_config(self) -> Any:
        return QLSegConfig(
            image_size=self.image_size,
            window_stride=self.image_size,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            mlp_ratio=2,
            out_indices=[0, 1, 2],
            encoder_layers=1,
            encoder_attention_heads=4,
            encoder_feedforward_dim=32,
            hidden_dim=self.hidden_dim,
            decoder_attention_heads=4,
            decoder_stages=2,
            decoder_layers=2,
            num_labels=self.num_labels,
        )


class QLSegModelTest(GradientsOfALoss, UniversalSegmentationModelTests, unittest.TestCase):
    model_tester_class = QLSegModelTester
    all_model_classes = (QLSegModel, QLSegForSemanticSegmentation)

    def test_semantic_scores(self):
        tester = self.model_tester
        model, inputs = self.make_segmentation_model()
        with torch.no_grad():
            scores = model.eval()(**inputs).semantic_scores
        self.assertEqual(scores.shape, (tester.batch_size, tester.num_labels, tester.image_size, tester.image_size))

    # Its backbone is no configuration of its own.

    def test_hidden_states_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = QLSegModel(config).to(torch_device).eval()
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        self.assertEqual(len(outputs.encoder_hidden_states), len(config.out_indices))
        self.assertEqual(len(outputs.pixel_decoder_hidden_states), len(config.out_indices))
        self.assertEqual(len(outputs.transformer_decoder_hidden_states), config.decoder_stages)
