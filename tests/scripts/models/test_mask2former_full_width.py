"""Mask2Former at full width, on ResNet-50 and Swin-T: the two codes agree, but for decisions of masked attention that
float noise turns; with those of transformers repeated they agree to it."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

from image_processing import FASegImageProcessor
from modeling_faseg import FASegForUniversalSegmentation
from modeling_faseg.decisions import Decisions
from scripts.models import mask2former


pytestmark = pytest.mark.slow

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
BACKBONES = {"ResNet-50": ResNetConfig(**STAGES), "Swin-T": SwinConfig(**STAGES)}
LOGITS = ("class_queries_logits", "masks_queries_logits")
SIZE = (256, 384)


class Repeated(Decisions):
    """Takes the decisions of another run in its order, and counts those that would have been taken otherwise."""

    def __init__(self, taken):
        self.taken, self.turned = iter(taken), 0

    def below(self, probs, threshold):
        taken = next(self.taken)
        self.turned += int((super().below(probs, threshold) != taken).sum())
        return taken


@pytest.fixture(scope="module", params=BACKBONES)
def both(request):
    """A random Mask2Former here, and that of transformers."""
    torch.manual_seed(0)
    config = Mask2FormerConfig(backbone_config=BACKBONES[request.param], num_labels=150)
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    ours = FASegForUniversalSegmentation(mask2former.faseg_config(config, "semantic")).eval()
    ours.load_state_dict(mask2former.renamed(theirs.state_dict()))
    return ours, theirs


def their_outputs(model, images):
    """What transformers' model gives, and its decisions `(B, Q, L)` by layer."""
    predictor, taken = model.model.transformer_module.decoder.mask_predictor, []
    heads = model.config.num_attention_heads

    def record(module, inputs, outputs):
        mask = outputs[1]
        taken.append(mask.view(-1, heads, *mask.shape[1:])[:, 0].bool())

    hook = predictor.register_forward_hook(record)
    try:
        return model(images), taken
    finally:
        hook.remove()


def repeated(model, images, taken):
    """What the model here gives with these decisions, and how many it would have taken otherwise."""
    decisions = model.model.transformer_decoder.decisions = Repeated(taken)
    try:
        return model(images), decisions.turned
    finally:
        model.model.transformer_decoder.decisions = Decisions()


def furthest(found, wanted):
    return max(float((found[name] - wanted[name]).abs().max()) for name in LOGITS)


def spread(outputs):
    """The logits of a random model as far apart as those of a trained one, for more than one label in a map."""
    classes, masks = (outputs[name] - outputs[name].mean(1, keepdim=True) for name in LOGITS)
    return SimpleNamespace(class_queries_logits=100 * classes, masks_queries_logits=100 * masks)


def label_maps(outputs):
    """The reference's rule, written anew: scores of all classes at full size, the best of them."""
    classes = outputs.class_queries_logits.softmax(-1)[..., :-1]
    masks = torch.nn.functional.interpolate(outputs.masks_queries_logits, SIZE, mode="bilinear", align_corners=False)
    return torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid()).argmax(1)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_logits_and_label_maps_are_transformers(both, seed, dtype):
    ours, theirs = (model.to(dtype) for model in both)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)
    wanted, taken = their_outputs(theirs, images)
    plain = furthest(ours(images), wanted)
    found, turned = repeated(ours, images, taken)
    print(
        f"{plain:.1e} apart; {turned} decisions of {sum(map(torch.numel, taken))} turned; without them "
        f"{furthest(found, wanted):.1e}"
    )
    assert furthest(found, wanted) < 1e-5
    assert plain < 1e-5 or (turned < 10 and plain < 1e-2)

    found, wanted = spread(found), spread(wanted)
    maps = torch.stack(FASegImageProcessor().post_process_semantic_segmentation(found, target_sizes=[SIZE] * 2))
    assert (maps != label_maps(wanted)).float().mean() < 1e-3 and len(maps.unique()) > 5
