"""RetinaNet R50-FPN on COCO 2017, distilled with DRKD in the author's form and weights.

Paper: Ni et al., Dual Relation Knowledge Distillation for Object Detection, IJCAI 2023.
Row: RetinaNet-Res50, 37.4 -> 40.3 mAP on val 2017 (the paper's numbers; not reproduced here).
The teacher is RetinaNet X101-64x4d (41.0 mAP).
Needs: torchvision's ``weights/resnet50-0676ba61.pth``, mmdetection's
``weights/retinanet_x101_64x4d_fpn_1x_coco_20200130-366f5af1.pth``, or
``--config.student.init=torchvision:resnet50
--config.teacher.checkpoint=mmdet:retinanet_x101_64x4d_fpn_1x_coco``, which fetch them; COCO 2017
prepared for TFDS (docs/data.md).
Command: python train.py --config=configs/retinanet_r50_fpn_2x_coco_drkd.py --workdir=runs/drkd
Cost: 24 epochs of 117 k images at 800 x 1333, 176 k steps of 16 images, each with an additional
forward pass of the teacher.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from drkd_jax.recipes import coco_2x, common


def get_config(name: str | None = None) -> ConfigDict:
    config = coco_2x.recipe(common.retinanet(50), learning_rate=0.01)
    coco_2x.distilled(config, pixel_relation=4e-3, instance_relation=5e-3, instance_feature=6e-3)
    return coco_2x.named(config, name)
