"""What the common tests of Mask2Former's and FASeg's image processors share."""

from typing import Any

import numpy as np
import torch
from tests.test_image_processing_common import (
    ImageProcessingTester,
    ImageProcessingTestMixin,
    PostProcessSemanticSegmentationTestMixin,
)


class UniversalImageProcessingTester(ImageProcessingTester):
    """Makes processors and inputs. Subclasses set the class of the outputs that are post-processed."""

    output_class: type

    def __init__(self, parent: Any):
        self.num_labels = 10
        self.do_reduce_labels = True
        self.ignore_index = 255
        self.num_queries = 3
        self.size = {"shortest_edge": 32, "longest_edge": 1333}
        self.size_divisor = 0
        self.image_mean = [0.5, 0.5, 0.5]
        self.image_std = [0.5, 0.5, 0.5]
        super().__init__(parent, batch_size=2)

    def prepare_post_process_semantic_segmentation_inputs(self) -> tuple[dict[str, Any], dict[str, int]]:
        size = (self.batch_size, self.num_queries)
        outputs = self.output_class(
            class_queries_logits=torch.randn(*size, self.num_labels + 1),
            masks_queries_logits=torch.randn(*size, 96, 96),
        )
        # Both families upsample to 384x384 here: Mask2Former always, FASeg because 96 is a quarter of it.
        return {"outputs": outputs}, {"num_labels": self.num_labels, "height": 384, "width": 384}

    def prepare_labelled_inputs(self, instances: bool) -> dict[str, Any]:
        images = self.prepare_image_inputs(equal_resolution=False)
        ids = self.num_labels * 2 if instances else self.num_labels
        maps = [np.random.randint(0, ids, image.size[::-1]).astype(np.uint8) for image in images]
        semantic_ids = {instance: instance % self.num_labels for instance in range(ids)} if instances else None
        return {"images": images, "segmentation_maps": maps, "instance_id_to_semantic_id": semantic_ids}


class UniversalImageProcessingTests(ImageProcessingTestMixin, PostProcessSemanticSegmentationTestMixin):
    """The common tests of a mask-classification processor, and what Mask2Former's own file adds about labels."""

    def test_with_size_divisor(self):
        for processor_class in self.image_processing_classes.values():
            for size_divisor in (8, 16, 32):
                processor = processor_class(**self.image_processor_dict | {"size_divisor": size_divisor})
                for height, width in ((407, 802), (582, 1094)):
                    pixel_values = processor([np.ones((3, height, width))], return_tensors="pt").pixel_values
                    self.assertEqual([side % size_divisor for side in pixel_values.shape[-2:]], [0, 0])

    def test_call_with_segmentation_maps(self):
        for processor_class in self.image_processing_classes.values():
            processor = processor_class(**self.image_processor_dict)
            for instances in (False, True):
                inputs = self.image_processor_tester.prepare_labelled_inputs(instances)
                encoding = processor(**inputs, return_tensors="pt")
                self.assertEqual(len(encoding["mask_labels"]), self.image_processor_tester.batch_size)
                for masks, classes in zip(encoding["mask_labels"], encoding["class_labels"], strict=True):
                    self.assertEqual(masks.shape[0], classes.shape[0])
                    self.assertEqual(masks.shape[1:], encoding["pixel_values"].shape[2:])
                    self.assertLess(int(classes.max()), self.image_processor_tester.num_labels)
