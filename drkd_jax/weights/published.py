"""Published files by short names: where each lies, with the start of its SHA-256.

Both libraries put the first eight hex digits of a file's sum into its name, so they are written
once here.

Sources: pytorch/vision, torchvision/models/resnet.py and detection/{faster_rcnn,retinanet}.py;
open-mmlab/mmdetection, configs/{retinanet,faster_rcnn}/README.md and configs/dcn/metafile.yml.
"""

from __future__ import annotations

import re
from types import MappingProxyType

PREFIXES = ("torchvision:", "mmdet:")

_TORCHVISION = "https://download.pytorch.org/models"
_MMDET = "https://download.openmmlab.com/mmdetection/v2.0"

_OF_TORCHVISION = {
    "resnet18": "resnet18-f37072fd",
    "resnet34": "resnet34-b627a593",
    "resnet50": "resnet50-0676ba61",
    "resnet101": "resnet101-63fe2227",
    "resnet152": "resnet152-394f9c45",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5",
    "fasterrcnn_resnet50_fpn": "fasterrcnn_resnet50_fpn_coco-258fb6c6",
    "retinanet_resnet50_fpn": "retinanet_resnet50_fpn_coco-eeacb38b",
}
# Name: its folder, and what stands behind the name in the file's.
_OF_MMDET = {
    "retinanet_r50_fpn_2x_coco": ("retinanet", "_20200131-fdb43119"),
    "retinanet_r101_fpn_2x_coco": ("retinanet", "_20200131-5560aee8"),
    "retinanet_x101_64x4d_fpn_1x_coco": ("retinanet", "_20200130-366f5af1"),
    "retinanet_x101_64x4d_fpn_2x_coco": ("retinanet", "_20200131-bca068ab"),
    "faster_rcnn_r50_fpn_2x_coco": ("faster_rcnn", "_bbox_mAP-0.384_20200504_210434-a5d8aa15"),
    "faster_rcnn_r101_fpn_2x_coco": ("faster_rcnn", "_bbox_mAP-0.398_20200504_210455-1d2dac9c"),
    "faster_rcnn_x101_64x4d_fpn_1x_coco": ("faster_rcnn", "_20200204-833ee192"),
    "faster_rcnn_x101_64x4d_fpn_2x_coco": ("faster_rcnn", "_20200512_161033-5961fa95"),
    "cascade_mask_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco": ("dcn", "-e75f90c8"),
}

_FILES = {
    f"torchvision:{name}": f"{_TORCHVISION}/{end}.pth" for name, end in _OF_TORCHVISION.items()
}
_FILES |= {
    f"mmdet:{name}": f"{_MMDET}/{folder}/{name}/{name}{end}.pth"
    for name, (folder, end) in _OF_MMDET.items()
}


def _with_sum(url: str) -> str:
    found = re.search(r"-([0-9a-f]{8})\.pth$", url)
    assert found is not None
    return f"{url}#sha256={found[1]}"


# "torchvision:resnet50": its address with the start of its sum.
PUBLISHED = MappingProxyType({name: _with_sum(url) for name, url in _FILES.items()})


def short_name(file_name: str) -> str:
    """The short name of a published file, or "".

    Args:
        file_name: as its maker gives it, "resnet50-0676ba61.pth".
    """
    wanted = f"/{file_name}"
    return next((name for name, url in _FILES.items() if url.endswith(wanted)), "")
