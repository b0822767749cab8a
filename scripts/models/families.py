"""What differs between the families of models: asked here, by a configuration's `model_type`, and nowhere else.

A type of no family, such as another model of transformers, is treated as the defaults of `Family` say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scripts.models.tasks import SEMANTIC, TASKS


_FASEG_RELEASE = "https://github.com/ziplab/FASeg/releases/download/V1/"
_DRIVE = "https://drive.google.com/file/d/"
_BAIDU = "https://pan.baidu.com/s/1IDYFNfko-UPwaAPRykRtlQ?pwd=u2jl"


@dataclass(frozen=True)
class Family:
    """What is special about the models of one `model_type`.

    Args:
        softmax_scores: class scores, averaged over windows as they are, become probabilities by a softmax.
        views_of_image: multi-scale evaluation resizes the image itself, not what a single scale would read.
        masks_of_images: its queries have masks of whole images.
        whole_head_decays: weight decay spares nothing in the head, as it spares norms and embeddings elsewhere.
        tasks: what its models can learn.
        needs_timm: its backbone is timm's, whatever the configuration says.
        processor: settings of a new image processor.
        names: module that knows the parameters' names in official checkpoints.
        released_files: model id -> URL of the official checkpoint.
        released_pages: model id -> page from which the official checkpoint has to be fetched by hand.
    """

    softmax_scores: bool = False
    views_of_image: bool = False
    masks_of_images: bool = True
    whole_head_decays: bool = False
    tasks: tuple[str, ...] = TASKS
    needs_timm: bool = False
    processor: Mapping[str, Any] = field(default_factory=dict)
    names: str = ""
    released_files: Mapping[str, str] = field(default_factory=dict)
    released_pages: Mapping[str, str] = field(default_factory=dict)


FAMILIES = {
    "faseg": Family(
        names="scripts.models.parameter_names",
        released_files={
            "faseg-resnet50-ade20k": _FASEG_RELEASE + "ade_faseg_r50.pth",
            "faseg-swin-tiny-ade20k": _FASEG_RELEASE + "ade_faseg_swin_ti.pth",
            "faseg-swin-base-ade20k-640": _FASEG_RELEASE + "ade_faseg_swin_b.pth",
            "faseg-swin-large-ade20k-640": _FASEG_RELEASE + "ade_faseg_swin_l.pth",
            "faseg-resnet50-cityscapes": _FASEG_RELEASE + "cityscapes_faseg_r50.pth",
        },
    ),
    "qlseg": Family(
        softmax_scores=True,
        views_of_image=True,
        masks_of_images=False,
        whole_head_decays=True,
        tasks=(SEMANTIC,),
        needs_timm=True,
        names="scripts.models.qlseg_names",
        released_pages={  # Google Drive asks before it gives out files of this size, and Baidu wants an account
            "qlseg-vit-base-ade20k": _DRIVE + "1-KjATwROIYVhYLg36Phd_n_-LsJXyg_N/view",
            "qlseg-vit-large-ade20k-640": _DRIVE + "1WI8UdcuJyHOdLLq_Ylh7hUMifm8B_21F/view",
            "qlseg-vit-large-coco-stuff10k": _BAIDU,
            "qlseg-vit-large-pascal-context59": _BAIDU,
            "qlseg-vit-large-pascal-context60": _BAIDU,
        },
    ),
    "semask": Family(
        softmax_scores=True,
        views_of_image=True,
        masks_of_images=False,
        whole_head_decays=True,
        tasks=(SEMANTIC,),
        processor={"size_divisor": 0},  # takes any size, and the reference adds no padding
        names="scripts.models.semask_names",
        released_pages={
            "semask-fpn-tiny-ade20k": "https://github.com/Picsart-AI-Research/SeMask-Segmentation",  # "TBD" there
            "semask-fpn-small-ade20k": _DRIVE + "1QhDG4SyGFtWL5kP9BbBoyPqTuFu7fH_y",
            "semask-fpn-base-ade20k": _DRIVE + "1PXCEhrrUy5TJC4dUp7YDQvaapnMzGT6C",
            "semask-fpn-large-ade20k": _DRIVE + "1u5flfAQCiQJbMZbZPIlGUGTYBz9Ca7rE",
            "semask-fpn-tiny-cityscapes": _DRIVE + "1_JBOJQSUVes-CWs075XyPnuNfG5psELr",
            "semask-fpn-small-cityscapes": _DRIVE + "1WyT207dZmdwETBUR6aeiqOVfQdUIV_fN",
            "semask-fpn-base-cityscapes": _DRIVE + "1-LzVB6XzD7IR0zzE5qmE0EM4ZTv429b4",
            "semask-fpn-large-cityscapes": _DRIVE + "1R9DDCmucQ_a_6ZkMGufEZCzJ-_qVMqCB",
            "semask-fpn-tiny-coco-stuff10k": _DRIVE + "1qhXsJ8H64JPI_DW7CNzhxpHSEG2sKaIl",
            "semask-fpn-small-coco-stuff10k": _DRIVE + "1ddXSMQu5ClkbLNMyQdyT0ATaOr86vIkL",
            "semask-fpn-base-coco-stuff10k": _DRIVE + "1pGWI7U9bZJoe4ZaDx7ktWELx-uVN7rL0",
            "semask-fpn-large-coco-stuff10k": _DRIVE + "1F6B9x9pX-SYEth7hdtxeNUeQ3XncOH7G",
        },
    ),
}


def family_of(config: Any) -> Family:
    """The family of a model's configuration."""
    return FAMILIES.get(getattr(config, "model_type", ""), Family())
