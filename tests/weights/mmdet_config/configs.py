"""Config texts of mmdetection, as in its checkpoints, for the narrow models."""

from pathlib import Path

from drkd_jax.weights.libraries.understanding import understand
from tests.weights.small import foreign

RETINANET = """
model = dict(
    type='RetinaNet',
    pretrained='torchvision://resnet18',
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, stem_channels=8, num_stages=4,
        out_indices=(0, 1, 2, 3), frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch'),
    neck=dict(
        type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, start_level=1,
        add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=3, in_channels=16, stacked_convs=2, feat_channels=16,
        anchor_generator=dict(
            type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0],
            target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    train_cfg=dict(allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
dataset_type = 'CocoDataset'
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
"""

# In the style of 3.x: the pixels in the model, the classes in the data loader.
FASTER_RCNN = """
model = dict(
    backbone=dict(
        base_channels=8, depth=18, frozen_stages=1, init_cfg=None,
        norm_cfg=dict(requires_grad=True, type='BN'), norm_eval=True, num_stages=4,
        out_indices=(0, 1, 2, 3), style='pytorch', type='ResNet'),
    data_preprocessor=dict(
        bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], pad_size_divisor=32,
        std=[58.395, 57.12, 57.375], type='DetDataPreprocessor'),
    neck=dict(in_channels=[8, 16, 32, 64], num_outs=5, out_channels=16, type='mmdet.FPN'),
    roi_head=dict(
        bbox_head=dict(
            bbox_coder=dict(
                target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[0.1, 0.1, 0.2, 0.2],
                type='DeltaXYWHBBoxCoder'),
            fc_out_channels=24, in_channels=16,
            loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
            loss_cls=dict(loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),
            num_classes=3, reg_class_agnostic=False, roi_feat_size=7, type='Shared2FCBBoxHead'),
        bbox_roi_extractor=dict(
            featmap_strides=[4, 8, 16, 32], out_channels=16,
            roi_layer=dict(output_size=7, sampling_ratio=0, type='RoIAlign'),
            type='SingleRoIExtractor'),
        type='StandardRoIHead'),
    rpn_head=dict(
        anchor_generator=dict(
            ratios=[0.5, 1.0, 2.0], scales=[8], strides=[4, 8, 16, 32, 64],
            type='AnchorGenerator'),
        bbox_coder=dict(
            target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0],
            type='DeltaXYWHBBoxCoder'),
        feat_channels=16, in_channels=16,
        loss_bbox=dict(loss_weight=1.0, type='L1Loss'),
        loss_cls=dict(loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=True),
        type='RPNHead'),
    test_cfg=dict(
        rcnn=dict(max_per_img=100, nms=dict(iou_threshold=0.5, type='nms'), score_thr=0.05),
        rpn=dict(
            max_per_img=1000, min_bbox_size=0, nms=dict(iou_threshold=0.7, type='nms'),
            nms_pre=1000)),
    train_cfg=dict(rpn=dict(allowed_border=-1)),
    type='FasterRCNN')
train_dataloader = dict(dataset=dict(metainfo=dict(classes=('nut', 'bolt', 'pin'))))
"""


def read(name, text, key="config", **how):
    """The understanding of a narrow model's file with a config text."""
    shapes = {key: value.shape for key, value in foreign(name)[1].items()}
    return understand(shapes, {key: text}, Path("x.pth"), {}, **how)
