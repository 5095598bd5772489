"""Detectors: ResNet and FPN with RetinaNet's or Faster R-CNN's head, sized by settings."""

from drkd_jax.models.build import DETECTORS, abstract_detector, build_detector, init_detector
from drkd_jax.models.detector import Detector

__all__ = ["DETECTORS", "Detector", "abstract_detector", "build_detector", "init_detector"]
