"""SeMask-FPN and its backbone under Transformers' common tests."""

import unittest
from typing import Any

import torch
from tests.test_backbone_common import BackboneTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import floats_tensor
from transformers.testing_utils import torch_device

from configuration import SeMaskConfig, SeMaskSwinConfig
from modeling_faseg import SeMaskForSemanticSegmentation, SeMaskSwinBackbone
from universal_segmentation import GradientsOfALoss, ImageModelTests


class SeMaskModelTester:
    segmentation_class = SeMaskForSemanticSegmentation

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.is_training = True
        self.batch_size = 2
        self.image_size = 64
        self.num_labels = 4

    def get_backbone_config(self) -> SeMaskSwinConfig:
        return SeMaskSwinConfig(
            image_size=self.image_size,
            embed_dim=16,
            depths=[1, 2, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=4,
            drop_path_rate=0.0,
            semantic_dropout=0.0,
            global_semantic_stages=[3],
            num_semantic_classes=self.num_labels,
        )

    def get_config(self) -> SeMaskConfig:
        return SeMaskConfig(
            backbone_config=self.get_backbone_config(),
            decoder_hidden_size=32,
            decoder_dropout=0.0,
            num_labels=self.num_labels,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        images = floats_tensor([self.batch_size, 3, self.image_size, self.image_size]).to(torch_device)
        return self.get_config(), {"pixel_values": images}

    def prepare_labels(self, batch_size: int) -> dict[str, torch.Tensor]:
        size = (batch_size, self.image_size, self.image_size)
        return {"labels": torch.randint(self.num_labels, size, device=torch_device)}


class SeMaskModelTest(GradientsOfALoss, ImageModelTests, unittest.TestCase):
    all_model_classes = (SeMaskForSemanticSegmentation,)
    test_resize_embeddings = False

    def setUp(self) -> None:
        self.model_tester = SeMaskModelTester(self)
        self.config_tester = ConfigTester(self, config_class=SeMaskConfig, has_text_modality=False)

    def test_hidden_states_output(self):
        """The patch embedding and a map per stage, whose sizes halve."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SeMaskForSemanticSegmentation(config).to(torch_device).eval()
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        self.assertEqual([tuple(state.shape[1:]) for state in states[:2]], [(16, 16, 16)] * 2)
        self.assertEqual(len(states), len(config.backbone_config.depths) + 1)

    def test_attention_outputs(self):
        """Window attention: a tensor per block, a row per window."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        model = SeMaskForSemanticSegmentation(config).to(torch_device).eval()
        model.set_attn_implementation("eager")
        attentions = model(**inputs, output_attentions=True).attentions
        self.assertEqual(len(attentions), sum(config.backbone_config.depths))
        self.assertEqual(tuple(attentions[0].shape), (32, 1, 16, 16))

    def test_retain_grad_hidden_states_attentions(self):
        """Of the attentions alone: hidden states are given out channels first, beside the path of the gradient."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SeMaskForSemanticSegmentation(config).to(torch_device)
        model.set_attn_implementation("eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        outputs.attentions[0].retain_grad()
        outputs.logits.sum().backward()
        self.assertIsNotNone(outputs.attentions[0].grad)


class SeMaskBackboneTest(BackboneTesterMixin, unittest.TestCase):
    all_model_classes = (SeMaskSwinBackbone,)
    config_class = SeMaskSwinConfig

    def setUp(self) -> None:
        tester = SeMaskModelTester(self)
        images = tester.prepare_config_and_inputs_for_common()[1]
        tester.prepare_config_and_inputs_for_common = lambda: (tester.get_backbone_config(), dict(images))
        self.model_tester = tester

    def test_config(self):
        """As the common test, but that all stages are given out by default, which every model on it needs."""
        everything = ["stage1", "stage2", "stage3", "stage4"]
        self.assertEqual(SeMaskSwinConfig().out_features, everything)
        self.assertEqual(SeMaskSwinConfig(out_features=["stage1", "stage3"]).out_indices, [1, 3])
        self.assertEqual(SeMaskSwinConfig(out_indices=[0, 2]).out_features, ["stem", "stage2"])
        with self.assertRaises(ValueError):
            SeMaskSwinConfig(out_features=["stage1", "stage2"], out_indices=[0, 2])
