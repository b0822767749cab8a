"""What model cards say of the papers: one sentence on the method, where its published figures are, how to cite it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """A paper whose models this project has.

    Args:
        family: `model_type` of its configurations, and how the model ids of hub_cards/ begin.
        about: what the method is, in Markdown.
        source: page with the authors' figures.
        citation: BibTeX.
    """

    family: str
    about: str
    source: str
    citation: str


FASEG = Paper(
    family="faseg",
    about="""\
[FASeg](https://arxiv.org/abs/2204.01244) (CVPR 2023) is Mask2Former's decoder with two changes: each query's
position is gathered from where that query looked one layer before (DFPQ), and attention to the finest map is kept
to the windows that the coarse maps found worth it (HRCA).""",
    source="https://github.com/ziplab/FASeg",
    citation="""@inproceedings{he2023dynamic,
  title     = {Dynamic Focus-aware Positional Queries for Semantic Segmentation},
  author    = {He, Haoyu and Cai, Jianfei and Pan, Zizheng and Liu, Jing and
               Zhang, Jing and Tao, Dacheng and Zhuang, Bohan},
  booktitle = {CVPR},
  year      = {2023}
}""",
)
SEMASK = Paper(
    family="semask",
    about="""\
[SeMask](https://arxiv.org/abs/2112.12782) ends each stage of a Swin Transformer with attention between tokens that
look alike to a classifier; a loss on the sum of these class maps teaches it. The decoder is a plain Semantic FPN.""",
    source="https://github.com/Picsart-AI-Research/SeMask-Segmentation",
    citation="""@article{jain2021semask,
  title   = {SeMask: Semantically Masked Transformer Backbones for Effective Semantic Segmentation},
  author  = {Jitesh Jain and Anukriti Singh and Nikita Orlov and Zilong Huang and Jiachen Li and
              Steven Walton and Humphrey Shi},
  journal = {arXiv},
  year    = {2021}
}""",
)
QLSEG = Paper(
    family="qlseg",
    about="""\
[QLSeg](https://doi.org/10.1016/j.patcog.2024.110777) (Pattern Recognition 2024) reads a plain ViT at several
depths; each depth has one query per class, whose attention over the image is the mask of that class.""",
    source="https://doi.org/10.1016/j.patcog.2024.110777",
    citation="""@article{xie2024multi,
  title   = {Multi-query and multi-level enhanced network for semantic segmentation},
  author  = {Xie, Bin and Cao, Jiale and Anwer, Rao Muhammad and Xie, Jin and
             Nie, Jing and Yang, Aiping and Pang, Yanwei},
  journal = {Pattern Recognition},
  pages   = {110777},
  year    = {2024}
}""",
)
PAPERS = (FASEG, SEMASK, QLSEG)


def paper_of(model_type: str) -> Paper:
    """The paper of a configuration's `model_type`."""
    return next(paper for paper in PAPERS if paper.family == model_type)
