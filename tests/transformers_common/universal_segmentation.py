"""What Mask2Former's and FASeg's common tests share, so that both run under one set of overrides.

Only what Mask2Former's own test file in Transformers overrides is overridden here, in our own words: its models take
no token embeddings, need `mask_labels` and `class_labels` for a loss, and name their hidden states by stage.
"""

import unittest
from typing import Any

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from transformers.testing_utils import torch_device


class UniversalSegmentationModelTester:
    """Makes small models and inputs. Subclasses set the three classes and `get_config`."""

    config_class: type
    model_class: type
    segmentation_class: type
    mask_stride = 4

    def __init__(self, parent: unittest.TestCase):
        self.parent = parent
        self.is_training = True
        self.batch_size = 2
        self.num_channels = 3
        self.num_queries = 10
        self.num_labels = 4
        self.image_size = 128
        self.hidden_dim = 32

    def get_config(self) -> Any:
        raise NotImplementedError("each model has its own configuration")

    def get_backbone_config(self) -> dict[str, Any]:
        return {
            "model_type": "swin",
            "image_size": self.image_size,
            "num_channels": self.num_channels,
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 1, 2, 2],
            "drop_path_rate": 0.0,
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        }

    def prepare_pixels(self) -> dict[str, torch.Tensor]:
        size = (self.batch_size, self.image_size, self.image_size)
        return {
            "pixel_values": floats_tensor([size[0], self.num_channels, *size[1:]]).to(torch_device),
            "pixel_mask": torch.ones(size, device=torch_device),
        }

    def prepare_labels(self, batch_size: int) -> dict[str, torch.Tensor]:
        size = (batch_size, self.num_labels, self.image_size, self.image_size)
        return {
            "mask_labels": (torch.rand(size, device=torch_device) > 0.5).float(),
            "class_labels": torch.randint(self.num_labels, size[:2], device=torch_device),
        }

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.get_config(), self.prepare_pixels()


class ImageModelTests(ModelTesterMixin):
    """The common tests of a model of images."""

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip(reason="takes images, not token embeddings")
    def test_inputs_embeds(self):
        pass

    @unittest.skip(reason="has no input embeddings")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip(reason="has no token embeddings")
    def test_resize_tokens_embeddings(self):
        pass


class GradientsOfALoss:
    """Give the tests of gradients a loss; Mask2Former's file does not, so there they skip or look at nothing.

    Not the tests that compare two calls: labels are drawn anew, and the loss may draw random points.
    """

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        needs_loss = self._testMethodName.startswith(("test_training", "test_enable_input_require_grads"))
        if return_labels and needs_loss and model_class is self.model_tester.segmentation_class:
            inputs |= self.model_tester.prepare_labels(len(inputs["pixel_values"]))
        return inputs


class UniversalSegmentationModelTests(ImageModelTests):
    """The common tests of a mask-classification model."""

    model_tester_class: type[UniversalSegmentationModelTester]
    test_missing_keys = False

    def setUp(self) -> None:
        self.model_tester = self.model_tester_class(self)
        self.all_model_classes = (self.model_tester.model_class, self.model_tester.segmentation_class)
        self.config_tester = ConfigTester(self, config_class=self.model_tester.config_class, has_text_modality=False)

    def make_segmentation_model(self, **config_values: Any) -> tuple[Any, dict[str, torch.Tensor]]:
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        config._attn_implementation = "eager"
        for name, value in config_values.items():
            setattr(config, name, value)
        model = self.model_tester.segmentation_class(config).to(torch_device)
        return model, inputs | self.model_tester.prepare_labels(self.model_tester.batch_size)

    # Tests that Mask2Former's own file adds

    def test_base_model(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.model_tester.model_class(config).to(torch_device).eval()
        with torch.no_grad():
            outputs = model(**inputs)
        expected = (self.model_tester.batch_size, self.model_tester.num_queries, self.model_tester.hidden_dim)
        self.assertEqual(outputs.transformer_decoder_last_hidden_state.shape, expected)
        self.assertIsNotNone(outputs.pixel_decoder_last_hidden_state)
        self.assertIsNotNone(outputs.encoder_last_hidden_state)

    def test_segmentation_model(self):
        tester = self.model_tester
        model, inputs = self.make_segmentation_model()
        with torch.no_grad():
            outputs = model.eval()(**inputs)
        size = (tester.batch_size, tester.num_queries)
        side = tester.image_size // tester.mask_stride
        self.assertEqual(outputs.masks_queries_logits.shape, (*size, side, side))
        self.assertEqual(outputs.class_queries_logits.shape, (*size, tester.num_labels + 1))
        self.assertEqual(outputs.loss.shape, ())

    def test_model_with_labels(self):
        model, inputs = self.make_segmentation_model()
        self.assertTrue(torch.isfinite(model(**inputs).loss))

    # Overrides

    def test_hidden_states_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.model_tester.model_class(config).to(torch_device).eval()
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        self.assertEqual(len(outputs.encoder_hidden_states), len(config.backbone_config.depths))
        self.assertGreater(len(outputs.pixel_decoder_hidden_states), 0)
        self.assertGreater(len(outputs.transformer_decoder_hidden_states), 0)

    def test_attention_outputs(self):
        for model_class in self.all_model_classes:
            config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
            config._attn_implementation = "eager"
            outputs = model_class(config).to(torch_device)(**inputs, output_attentions=True)
            self.assertGreater(len(outputs.attentions), 0)

    def test_training(self):
        model, inputs = self.make_segmentation_model()
        model.train()
        model(**inputs).loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.assertTrue(any(gradient.abs().sum() > 0 for gradient in gradients))

    def test_retain_grad_hidden_states_attentions(self):
        model, inputs = self.make_segmentation_model(output_hidden_states=True, output_attentions=True)
        outputs = model.train()(**inputs)
        kept = [
            outputs.encoder_hidden_states[0],
            outputs.pixel_decoder_hidden_states[0],
            outputs.transformer_decoder_hidden_states[0],
            outputs.attentions[0],
        ]
        for tensor in kept:
            tensor.retain_grad()
        outputs.loss.backward(retain_graph=True)
        for tensor in kept:
            self.assertIsNotNone(tensor.grad)
