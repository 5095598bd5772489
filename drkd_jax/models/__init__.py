"""Detectors: ResNet and FPN with RetinaNet's or Faster R-CNN's head, sized by settings."""

from drkd_jax.models.build import DETECTORS, abstract_detector, build_detector, init_detector
from drkd_jax.models.detector import Detector
from drkd_jax.models.one_name import become_one

__all__ = ["DETECTORS", "Detector", "abstract_detector", "build_detector", "init_detector"]

if __name__ == "models":  # by the link at the top of a checkout
    become_one(__name__)
