"""A backbone of which nothing learns: no activation of it is kept, nothing in it is random, nothing of it moves."""

import copy

import pytest
import torch
from tiny_models import TINY_RESNET, TINY_SWIN, tiny_batch
from tiny_models import tiny_model as tiny_faseg
from tiny_qlseg import tiny_qlseg
from tiny_semask import tiny_faseg as tiny_faseg_on_semask
from tiny_semask import tiny_model as tiny_semask

from modeling_faseg import pretrained


MODELS = {
    "resnet": tiny_faseg,
    "faseg on semask": tiny_faseg_on_semask,
    "semask": tiny_semask,
    "qlseg": lambda: tiny_qlseg(drop_path_rate=0.5),
}
LARGE_RESNET = {**TINY_RESNET, "embedding_size": 64, "hidden_sizes": [64, 64, 64, 64], "depths": [2, 2, 2, 2]}


def batch():
    images = tiny_batch((64, 64))
    return {**images, "class_labels": [torch.arange(len(masks)) for masks in images["mask_labels"]]}


def frozen(kind):
    model = MODELS[kind]()
    model.base_model.backbone.requires_grad_(False)
    return model.train()


class SavedTensors:
    """Counts the activations that autograd keeps: in all, and by the time that the backbone is done.

    Parameters and buffers, which are there anyway, are not counted; each storage is counted once.
    """

    def __init__(self, model):
        self.own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
        self.storages, self.in_backbone = {}, None
        backbone = model.base_model.backbone
        self.hook = backbone.register_forward_hook(lambda *_: setattr(self, "in_backbone", self.bytes()))

    def keep(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.storages[storage.data_ptr()] = storage
        return tensor

    def bytes(self):
        return sum(storage.nbytes() for storage in self.storages.values())

    def __enter__(self):
        self.context = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda tensor: tensor)
        self.context.__enter__()
        return self

    def __exit__(self, *error):
        self.context.__exit__(*error)
        self.hook.remove()


@pytest.mark.parametrize("kind, checkpointing", [*((kind, False) for kind in MODELS), ("resnet", True)])
def test_no_activation_of_a_frozen_backbone_is_kept(kind, checkpointing):
    kept = {}
    for name, model in (("tuned", MODELS[kind]().train()), ("frozen", frozen(kind))):
        if checkpointing:
            model.gradient_checkpointing_enable()
        with SavedTensors(model) as saved:
            loss = model(**batch()).loss
        kept[name] = (saved.in_backbone, saved.bytes())
        loss.backward()
    assert kept["tuned"][0] > 0 and kept["frozen"][0] == 0
    # The maps themselves are kept for the gradients of the decoder's first weights.
    assert kept["frozen"][1] < kept["tuned"][1]


def test_no_graph_begins_inside_a_frozen_backbone():
    """As transformers' `enable_input_require_grads`, which peft calls, begins one: by a hook on the first layer."""
    model = frozen("resnet")
    first = next(module for module in model.model.backbone.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, args, output: output.requires_grad_())
    with SavedTensors(model) as saved:
        model(**batch()).loss.backward()
    assert saved.in_backbone == 0


def test_a_step_with_a_frozen_backbone_keeps_less_than_half():
    """Where the backbone is most of the model, as a vision transformer is."""
    kept = []
    for freeze in (False, True):
        model = tiny_faseg(backbone_config=dict(LARGE_RESNET))
        model.model.backbone.requires_grad_(not freeze)
        with SavedTensors(model.train()) as saved:
            model(**tiny_batch((128, 128)))
        kept.append(saved.bytes())
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("kind", MODELS)
def test_heads_learn_as_if_the_backbone_were_differentiated(kind, monkeypatch):
    """Gradients are those of a backbone whose graph is kept, to the last bit."""
    found = []
    for kept in (False, True):
        model = frozen(kind)
        if kept:
            monkeypatch.setattr(pretrained, "is_frozen", lambda backbone: False)
        torch.manual_seed(0)
        model(**batch()).loss.backward()
        monkeypatch.undo()
        found.append({name: value.grad for name, value in model.named_parameters()})
    assert all(value is None for name, value in found[0].items() if "backbone." in name)
    heads = [name for name, value in found[0].items() if value is not None]
    assert heads and all(torch.equal(found[0][name], found[1][name]) for name in heads)
    assert heads == [name for name, value in found[1].items() if value is not None]


@pytest.mark.parametrize("kind", MODELS)
def test_images_that_require_a_gradient_get_one(kind):
    """A saliency map is that of the same model with nothing frozen."""
    found = []
    for model in (MODELS[kind](), frozen(kind).eval()):
        images = batch()["pixel_values"].requires_grad_()
        output = model(pixel_values=images)
        scores = output.logits if kind == "semask" else output.class_queries_logits
        scores.square().sum().backward()
        found.append(images.grad)
    assert found[0].abs().max() > 0 and torch.allclose(*found, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_a_frozen_backbone_is_not_random_and_does_not_move(kind):
    model = frozen(kind)
    backbone = model.base_model.backbone
    assert model.training and not any(module.training for module in backbone.modules())
    before = copy.deepcopy(backbone.state_dict())
    images, maps = batch(), []
    backbone.register_forward_hook(lambda *results: maps.append(results[-1]))
    for _ in range(2):
        model(**images)
    first, second = (getattr(each, "feature_maps", each) for each in maps)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert not model.eval().training and model.train().training
    # What learns again is as it was.
    backbone.requires_grad_(True)
    assert all(module.training for module in model.train().base_model.backbone.modules())


def test_a_part_that_learns_in_a_frozen_backbone_gets_its_gradient():
    """An adapter, such as one of peft."""
    model = frozen("faseg on semask")
    adapter = next(parameter for parameter in model.model.backbone.parameters())
    adapter.requires_grad_(True)
    model.train()(**batch()).loss.backward()
    assert adapter.grad.abs().max() > 0 and model.model.backbone.training


def test_drop_path_of_a_frozen_backbone_is_off():
    """Swin's at one half: features of a tuned one differ from pass to pass."""
    model = tiny_faseg(backbone_config={**TINY_SWIN, "depths": [1, 1, 1, 1]}).model
    images = batch()["pixel_values"]
    same = []
    for freeze in (False, True):
        model.backbone.requires_grad_(not freeze)
        backbone = model.train().backbone
        torch.manual_seed(0)
        same.append(all(torch.equal(*maps) for maps in zip(*(backbone(images).feature_maps for _ in range(2)))))
    assert same == [False, True]


@pytest.mark.slow
def test_a_frozen_backbone_compiles_in_one_graph():
    model = frozen("resnet").model
    images = batch()["pixel_values"]
    plain = model(images).masks_queries_logits[-1]
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(images).masks_queries_logits[-1], plain, atol=1e-5)
