"""Random Mask2Formers of transformers, as folders."""

import torch
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor


HEAD = "model.transformer_module.decoder.mask_predictor"
NAMES = {index: f"thing {index}" for index in range(6)}


def write_mask2former(folder, backbone, task="semantic", **fields):
    """A random Mask2Former of transformers and its processor, with predictions that differ."""
    torch.manual_seed(0)
    tiny = {
        "feature_size": 32, "mask_feature_size": 16, "hidden_dim": 32, "encoder_layers": 1,
        "encoder_feedforward_dim": 32, "decoder_layers": 4, "dim_feedforward": 32, "num_attention_heads": 4,
        "num_queries": 6, "id2label": NAMES, "label2id": {name: index for index, name in NAMES.items()},
    }  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=dict(backbone), **{**tiny, **fields})
    )
    with torch.no_grad():
        model.class_predictor.weight.mul_(100)
        dict(model.named_parameters())[f"{HEAD}.mask_embedder.2.0.weight"].mul_(100)
        # Random queries are much alike: their differences are to decide, and seldom for "no object".
        model.class_predictor.bias -= model.eval()(torch.randn(1, 3, 96, 128)).class_queries_logits.mean(dim=(0, 1))
        model.class_predictor.bias[-1] -= 20
    model.save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 256}
    Mask2FormerImageProcessor(size=size, ignore_index=255, num_labels=6).save_pretrained(folder)
    return folder
