"""Faster R-CNN R50-FPN on COCO 2017, distilled with DRKD in the author's form and weights.

Paper: Ni et al., Dual Relation Knowledge Distillation for Object Detection, IJCAI 2023.
Row: Faster R-CNN-Res50, 38.4 -> 41.6 mAP on val 2017 (the paper's numbers; not reproduced here).
The teacher is a Cascade Mask R-CNN X101-32x4d-FPN with deformable convolutions (47.3 mAP); only its
backbone and pyramid are used. For the paper's second teacher, Faster R-CNN X101-64x4d (42.1 mAP):
``--config.teacher.checkpoint=weights/faster_rcnn_x101_64x4d_fpn_1x_coco_20200204-833ee192.pth``.
Needs: torchvision's ``weights/resnet50-0676ba61.pth``, mmdetection's
``weights/cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco-e75f90c8.pth``, or
``--config.student.init=torchvision:resnet50 --config.teacher.checkpoint=``
``mmdet:cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco``, which fetch them; COCO 2017
prepared for TFDS (docs/data.md).
Command: python train.py --config=configs/faster_rcnn_r50_fpn_2x_coco_drkd.py --workdir=runs/drkd
Cost: 24 epochs of 117 k images at 800 x 1333, 176 k steps of 16 images, each with an additional
forward pass of the teacher.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from drkd_jax.recipes import coco_2x, common


def get_config(name: str | None = None) -> ConfigDict:
    config = coco_2x.recipe(common.faster_rcnn(50), learning_rate=0.02)
    coco_2x.distilled(config, pixel_relation=1e-3, instance_relation=4e-3, instance_feature=2.4e-3)
    return coco_2x.named(config, name)
