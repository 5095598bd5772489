"""Detectors: ResNet and FPN with the head of RetinaNet or (Cascade) Faster R-CNN."""

from drkd_jax.models.build import DETECTORS, abstract_detector, build_detector, init_detector
from drkd_jax.models.detector import Detector
from drkd_jax.models.one_name import become_one

__all__ = ["DETECTORS", "Detector", "abstract_detector", "build_detector", "init_detector"]

if __name__ == "models":  # imported by the link at the top of a checkout
    become_one(__name__)
