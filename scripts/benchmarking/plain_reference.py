"""FASeg's transformer decoder, matching and loss written step by step, as slow as they are plain.

What the fast code is tested and timed against (`scripts/benchmark.py`): every mask at full size in every layer, the
attention-weighted positions as one product of queries x tokens x channels, one matching per prediction and image.
Weights come from the fast modules by name; random points are drawn as the reference draws them.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F


Prediction = tuple[Tensor, Tensor]  # mask logits (B, Q, h, w) and class logits (B, Q, K + 1)


def decode(
    weights: dict[str, Tensor],
    config: Any,
    feature_maps: list[Tensor],
    positions: list[Tensor],
    mask_features: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    """Normalised queries `(B, Q, C)` and masks `(B, Q, H/4, W/4)` of every prediction, the initial one first.

    Args:
        weights: `named_parameters` of a `FASegTransformerDecoder` with DFPQ and HRCA and without input projections.
        feature_maps, positions: four maps `(B, C, H/s, W/s)` each, s = 32, 16, 8, 4.
        mask_features: `(B, M, H/4, W/4)`.
    """
    batch = mask_features.shape[0]
    sizes = [(level.shape[-2], level.shape[-1]) for level in feature_maps]
    values = [
        level.flatten(2).transpose(1, 2) + weights["level_embed.weight"][index]
        for index, level in enumerate(feature_maps)
    ]
    places = [position.flatten(2).transpose(1, 2) for position in positions]
    learned = weights["queries_embedder.weight"].expand(batch, -1, -1)
    queries = weights["queries_features.weight"].expand(batch, -1, -1)
    heads = config.num_attention_heads

    predictions = [predict(weights, queries, mask_features)]
    probs = resized_probs(predictions[-1][1], sizes[0])
    outside = (probs < 0.5).float()
    focus = weighted_positions(outside / (outside.sum(-1, keepdim=True) + 1e-6), places[0])
    position = adapt(weights, focus + learned)
    coarse = None
    for index in range(config.decoder_layers):
        layer = {
            name.removeprefix(f"layers.{index}."): value
            for name, value in weights.items()
            if name.startswith(f"layers.{index}.")
        }
        level = index % 4
        if level < 3:
            blocked = probs < config.attention_mask_threshold
            blocked = blocked & ~blocked.all(-1, keepdim=True)
            update, attention = attend(
                layer, "cross_attn", heads, queries + position, values[level] + places[level], values[level], blocked
            )
            coarse = attention if level == 0 else coarse
        else:
            assert coarse is not None
            kept = high_resolution_tokens(coarse, sizes, config.high_resolution_reduction)
            value = take_tokens(values[3], kept)
            update, _ = attend(
                layer, "cross_attn", heads, queries + learned, value + take_tokens(places[3], kept), value
            )
        queries = norm(layer, "cross_attn_layer_norm", queries + update)
        positioned = queries + position
        queries = norm(
            layer,
            "self_attn_layer_norm",
            queries + attend(layer, "self_attn", heads, positioned, positioned, queries)[0],
        )
        update = linear(layer, "fc2", F.relu(linear(layer, "fc1", queries)))
        queries = norm(layer, "final_layer_norm", queries + update)
        predictions.append(predict(weights, queries, mask_features))
        probs = resized_probs(predictions[-1][1], sizes[(index + 1) % 4])
        if level < 3:
            position = adapt(weights, weighted_positions(attention, places[level]) + learned)
    return predictions


def predict(weights: dict[str, Tensor], queries: Tensor, mask_features: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised queries and their masks."""
    normalised = norm(weights, "layernorm", queries)
    embedding = normalised
    for index in range(3):
        embedding = linear(weights, f"mask_embedder.layers.{index}", embedding)
        embedding = F.relu(embedding) if index < 2 else embedding
    return normalised, torch.einsum("bqc,bchw->bqhw", embedding, mask_features)


def resized_probs(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """`(B, Q, h * w)` mask probabilities on a level; no gradient flows through what is decided with them."""
    resized = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    return resized.sigmoid().flatten(2).detach()


def weighted_positions(attention: Tensor, places: Tensor) -> Tensor:
    """`(B, Q, L)` weights of `(B, L, C)` positions, summed: `(B, Q, C)`."""
    return (attention[..., None] * places[:, None]).sum(2)


def adapt(weights: dict[str, Tensor], focus: Tensor) -> Tensor:
    """Positional queries from what was focused on and learned."""
    return linear(weights, "focus_queries.fc2", F.relu(linear(weights, "focus_queries.fc1", focus)))


def attend(
    layer: dict[str, Tensor],
    name: str,
    heads: int,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    blocked: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Multi-head attention and its weights `(B, Q, L)` averaged over heads; without keys only the output's bias."""
    q, k, v = (
        linear(layer, f"{name}.{kind}_proj", tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
        for kind, tokens in (("q", queries), ("k", keys), ("v", values))
    )
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
    if blocked is not None:
        scores = scores.masked_fill(blocked[:, None], -math.inf)
    weights = scores.softmax(-1)
    return linear(layer, f"{name}.o_proj", (weights @ v).transpose(1, 2).flatten(2)), weights.mean(1)


def high_resolution_tokens(coarse: Tensor, sizes: list[tuple[int, int]], reduction: int) -> Tensor:
    """`(B, W * side * side)` stride-4 tokens under the best-attended stride-32 tokens."""
    (rows, columns), (_, fine_columns) = sizes[0], sizes[3]
    side = fine_columns // columns
    kept = coarse.sum(1).argsort(-1, descending=True)[:, : rows * columns // reduction]
    offsets = torch.arange(side, device=kept.device)
    fine_rows = (kept // columns * side)[..., None, None] + offsets[:, None]
    fine = fine_rows * fine_columns + (kept % columns * side)[..., None, None] + offsets
    return fine.flatten(1)


def take_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """`(B, L, C)` at `(B, K)` as `(B, K, C)`."""
    return torch.stack([image[kept] for image, kept in zip(tokens, index)])


def linear(weights: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    """The linear layer of that name."""
    return F.linear(tokens, weights[f"{name}.weight"], weights[f"{name}.bias"])


def norm(weights: dict[str, Tensor], name: str, tokens: Tensor) -> Tensor:
    """The layer norm of that name."""
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


# -------------------------------------------------------------------------------------------------------------- loss


def match(
    prediction: Prediction, mask_labels: list[Tensor], class_labels: list[Tensor], num_points: int
) -> list[tuple[Tensor, Tensor]]:
    """Per image the matched queries and targets of one prediction (costs 2, 5 and 5)."""
    matches = []
    with torch.no_grad():
        for masks, logits, targets, classes in zip(*prediction, mask_labels, class_labels):
            points = torch.rand(1, num_points, 2, device=masks.device)
            at_points = sample(masks, points.expand(len(masks), -1, -1))
            wanted = sample(targets, points.expand(len(targets), -1, -1))
            positive = F.binary_cross_entropy_with_logits(at_points, torch.ones_like(at_points), reduction="none")
            negative = F.binary_cross_entropy_with_logits(at_points, torch.zeros_like(at_points), reduction="none")
            entropy = (positive @ wanted.T + negative @ (1 - wanted).T) / num_points
            probs = at_points.sigmoid()
            dice = 1 - (2 * probs @ wanted.T + 1) / (probs.sum(-1)[:, None] + wanted.sum(-1)[None] + 1)
            cost = 2 * -logits.softmax(-1)[:, classes] + 5 * entropy + 5 * dice
            rows, columns = linear_sum_assignment(cost.cpu().numpy())
            matches.append((torch.as_tensor(rows), torch.as_tensor(columns)))
    return matches


def losses(
    predictions: list[Prediction],
    mask_labels: list[Tensor],
    class_labels: list[Tensor],
    num_points: int,
    no_object_weight: float = 0.1,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
) -> Iterator[dict[str, Tensor]]:
    """Unweighted `loss_cross_entropy`, `loss_mask`, `loss_dice` of every prediction, the final one first."""
    num_masks = max(1, sum(len(classes) for classes in class_labels))
    for masks, logits in predictions:
        matches = match((masks, logits), mask_labels, class_labels, num_points)
        num_labels = logits.shape[-1] - 1
        wanted_classes = torch.full(logits.shape[:2], num_labels, device=logits.device)
        chosen, wanted = [], []
        for image, (queries, targets) in enumerate(matches):
            wanted_classes[image, queries] = class_labels[image][targets]
            chosen.append(masks[image, queries])
            wanted.append(mask_labels[image][targets])
        weight = torch.ones(num_labels + 1, device=logits.device)
        weight[-1] = no_object_weight
        chosen_masks, wanted_masks = torch.cat(chosen), torch.cat(wanted)
        with torch.no_grad():
            candidates = torch.rand(len(chosen_masks), int(num_points * oversample_ratio), 2, device=masks.device)
            uncertainty = -sample(chosen_masks, candidates).abs()
            count = int(importance_sample_ratio * num_points)
            index = uncertainty.topk(count, dim=1).indices
            rest = torch.rand(len(chosen_masks), num_points - count, 2, device=masks.device)
            points = torch.cat((candidates.gather(1, index[..., None].expand(-1, -1, 2)), rest), dim=1)
            wanted_at = sample(wanted_masks, points)
        chosen_at = sample(chosen_masks, points)
        entropy = F.binary_cross_entropy_with_logits(chosen_at, wanted_at, reduction="none")
        probs = chosen_at.sigmoid()
        dice = 1 - (2 * (probs * wanted_at).sum(-1) + 1) / (probs.sum(-1) + wanted_at.sum(-1) + 1)
        yield {
            "loss_cross_entropy": F.cross_entropy(logits.transpose(1, 2), wanted_classes, weight=weight),
            "loss_mask": entropy.mean(1).sum() / num_masks,
            "loss_dice": dice.sum() / num_masks,
        }


def sample(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of `(N, H, W)` at `(N, P, 2)` points in [0, 1]: `(N, P)`."""
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(masks[:, None], grid, mode="bilinear", align_corners=False)[:, 0, :, 0]
