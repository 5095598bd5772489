"""Faster R-CNN R50-FPN on COCO 2017, the plain student.

Paper: Ni et al., Dual Relation Knowledge Distillation for Object Detection, IJCAI 2023.
Row: Faster R-CNN-Res50, without distillation: 38.4 mAP on val 2017 (the paper's number; not
reproduced here).
Needs: torchvision's ImageNet weights ``weights/resnet50-0676ba61.pth``, or
``--config.student.init=torchvision:resnet50``, which fetches them; COCO 2017 prepared for TFDS
(docs/data.md).
Command: python train.py --config=configs/faster_rcnn_r50_fpn_2x_coco.py --workdir=runs/faster_rcnn
Cost: 24 epochs of 117 k images at 800 x 1333, 176 k steps of 16 images.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from drkd_jax.recipes import coco_2x, common


def get_config(name: str | None = None) -> ConfigDict:
    return coco_2x.named(coco_2x.recipe(common.faster_rcnn(50), learning_rate=0.02), name)
