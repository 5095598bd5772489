"""What the recipes share: every key a run knows, with its default, and the ``:tiny`` form.

A recipe is a file with ``get_config(name=None) -> ConfigDict``. It starts from ``base()`` and
changes what is its own. ``--config=FILE.py:FORM`` passes FORM; every recipe knows ``tiny``.
Any key can be set from the command line: ``--config.train.learning_rate=0.005``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from drkd_jax.distill.config import TERMS, DistillConfig
from drkd_jax.models.build import DETECTORS

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


def base() -> ConfigDict:
    """Every key of a run. ``student`` still needs its model settings."""
    config = ConfigDict()
    config.seed = 0  # of weights, order of the pictures, and sampling

    data = config.data = ConfigDict()
    # shapes:N[:SEED] | coco:IMAGES_DIR:INSTANCES_JSON | tfds:coco/2017:SPLIT[@DATA_DIR]
    data.train = "shapes:1024"
    data.val = "shapes:200:1"  # what is scored; the same kinds of sources
    data.canvases = ((800, 1344), (1344, 800))  # height, width; multiples of the coarsest stride
    data.shorter = 800  # pixels of the shorter side after resizing ...
    data.longer = 1333  # ... unless the longer side would pass this
    # mmdet | torchvision: whose rule; the latter keeps floats. stretch: every picture gets the
    # height data.shorter and the width data.longer
    data.resize = "mmdet"
    data.max_boxes = 100  # rows for ground truth in a batch
    data.flip = 0.5  # probability of a mirrored training picture
    data.scale_jitter = (1.0, 1.0)  # factors of a training picture's sides, between these two
    data.colour_jitter = 0.0  # strength of random brightness, contrast and saturation, 0..1
    data.drop_empty = True  # leave training pictures without a box, or under 32 pixels, out
    data.on_error = "stop"  # stop | skip: what a picture or entry that cannot be read does
    data.exif = "auto"  # auto | stored | turned: pixels that boxes of a turned photograph mean
    data.depth = 0  # bits that 16-bit pictures use, 8 to 16; 0 for all 16
    data.num_threads = placeholder(int)  # that read and resize; empty: one a core, 4 to 16
    data.num_workers = 0  # worker processes; 0 reads in threads
    data.prefetch = placeholder(int)  # batches read ahead; empty: as many as threads, 4 at least
    data.mean = IMAGENET_MEAN  # what is subtracted from the channels, of 0..255 ...
    data.std = IMAGENET_STD  # ... and what they are divided by then
    data.channels = "rgb"  # rgb | bgr: what the student reads; mean and std in that order

    # Every key of every detector (drkd_jax/models/settings.py); an empty one is at the detector's
    # default, which its convention may change.
    config.student = model_keys()
    config.student.init = ""  # "" from scratch; a work folder, or a file (docs/weights.md)

    config.teacher = placeholder(ConfigDict)  # None: no teacher
    config.distill = placeholder(ConfigDict)  # None: plain training

    train = config.train = ConfigDict()
    train.batch_size = 16  # pictures a step over all devices
    train.accumulate = 1  # parts that these are worked off in, one after the other, to save memory
    train.epochs = 0.0  # length of the run; 0 where ``steps`` gives it
    train.steps = 0  # length of the run; 0 where ``epochs`` gives it
    train.learning_rate = 0.02  # the largest, after the warm-up
    train.linear_rate_for = 0  # batch size that the rate is meant for; 0 leaves the rate alone
    train.optimizer = "sgd"  # sgd | adamw
    train.momentum = 0.9  # of sgd
    train.b1, train.b2 = 0.9, 0.999  # of adamw
    train.weight_decay = 1e-4  # share of a parameter taken off in a step, times the rate
    train.weight_decay_mask = "all"  # all | kernels (no decay on biases and norms)
    train.warmup_steps = 500  # in which the learning rate rises
    train.warmup_factor = 0.001  # the first step's share of the learning rate
    train.schedule = "step"  # step | cosine (then decay_at and decay_factor say nothing)
    train.decay_at = ()  # shares of the run under 1, else in epochs or steps, as its length is
    train.decay_factor = 0.1  # what the rate is multiplied by there
    train.final_factor = 0.0  # of cosine: the share of the rate left at the end
    train.clip_norm = 0.0  # largest gradient norm, student and distiller each; 0 for none
    train.ema = 0.0  # decay of a moving average of the student, which is then scored and kept
    train.precision = "float32"  # float32 | bfloat16: what the networks compute in
    train.parallel = "jit"  # jit | pmap: the same losses, see docs/several-machines.md
    train.log_every = 50  # steps
    train.log_gradients = 0  # steps between two comparisons of the terms' gradients; 0 for never
    train.checkpoint_every = 1000  # steps
    train.eval_every = 0  # steps; 0 evaluates at the end only
    train.early_stop = 0  # evaluations without a better AP that end the run; 0 for never
    train.tensorboard_pictures = 0  # validation pictures that an evaluation draws into TensorBoard
    train.keep = 2  # checkpoints kept beside the best one
    train.silence_steps = 200  # a term that is silent for so long is named in a warning;
    train.silence_share = 1e-3  # silent is what makes less than this share of the loss

    config.eval = ConfigDict()
    config.eval.batch_size = 16  # pictures a step when scoring
    config.eval.max_pictures = 0  # score only the first so many; 0 for all
    config.eval.max_detections = 100  # of a class and picture that count; COCO's number is 100
    config.eval.evaluator = "faster"  # faster | pycocotools: the same numbers, several times slower
    return config


def with_teacher(config: ConfigDict, checkpoint: str, **settings: Any) -> ConfigDict:
    """Adds a teacher. Without ``settings`` its model is read from the checkpoint."""
    teacher = config.teacher = model_keys()
    teacher.checkpoint = checkpoint  # a work folder, or a file (docs/weights.md)
    teacher.init = ""  # "random" lets an untrained teacher through, by name
    teacher.evaluate = False  # measure the teacher's AP on ``data.val`` at the start
    teacher.dtype = "bfloat16"  # what the teacher computes in: float32 | bfloat16
    teacher.prefix = placeholder(str)  # of one model in a file of several
    teacher.data = ConfigDict()  # what it reads, where its file says other than is true
    teacher.data.mean, teacher.data.std = placeholder(tuple), placeholder(tuple)  # as the student's
    teacher.data.channels = placeholder(str)  # rgb | bgr
    teacher.update(ConfigDict(settings))
    return config


def model_keys() -> ConfigDict:
    """An empty place of the right type for every setting of every detector."""
    types: dict[str, Any] = {"detector": str}
    for _, settings in DETECTORS.values():
        types |= _types(settings)
    return _places(types)


def _types(settings: Any) -> dict[str, Any]:
    """Type of each field, tuple for any tuple; a dict of them for nested settings."""
    found: dict[str, Any] = {}
    hints = get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, hint = getattr(settings, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            found[field.name] = _types(value)
        elif get_origin(hint) is tuple:
            found[field.name] = tuple
        else:
            kinds = get_args(hint) or (hint,)
            found[field.name] = next(kind for kind in kinds if kind is not type(None))
    return found


def _places(types: dict[str, Any]) -> ConfigDict:
    places = ConfigDict()
    for key, kind in types.items():
        places[key] = _places(kind) if isinstance(kind, dict) else placeholder(kind)
    return places


def retinanet(depth: int = 50, **backbone: Any) -> ConfigDict:
    """RetinaNet on ResNet-FPN, P3..P7, in mmdetection's conventions."""
    return ConfigDict(
        {
            "detector": "retinanet",
            "backbone": {"depth": depth, "norm": "frozen_bn", "frozen_stages": 1, **backbone},
            "channels": 256,
            "extra": "conv_c5",
        }
    )


def faster_rcnn(depth: int = 50, **backbone: Any) -> ConfigDict:
    """Faster R-CNN on ResNet-FPN, P2..P6, in mmdetection's conventions."""
    return ConfigDict(
        {
            "detector": "faster_rcnn",
            "backbone": {"depth": depth, "norm": "frozen_bn", "frozen_stages": 1, **backbone},
            "channels": 256,
            "extra": "pool",
        }
    )


def small_detector(detector: str) -> ConfigDict:
    """The same detectors with small numbers, to be trained from scratch on small pictures.

    Anchors begin at 16 pixels. GroupNorm takes the place of pretrained statistics, and narrow
    heads start wider than 0.01, which belongs to 256 channels.

    Raises:
        ValueError: there is no such detector.
    """
    made = {"retinanet": retinanet, "faster_rcnn": faster_rcnn}
    if detector not in made:
        raise ValueError(f"unknown detector '{detector}'; there are {' and '.join(made)}")
    settings = made[detector](18, width=16)
    settings.backbone.update(norm="gn", frozen_stages=0)
    settings.update(channels=32, head_std=0.03)
    if detector == "retinanet":
        settings.update(head_convs=1, anchors={"scale": 2.0, "octaves": 3})
    else:
        settings.update(
            fc=128,
            anchors={"scale": 4.0},
            proposals={"pre_nms": 300, "max_out": 200, "pre_nms_test": 200, "max_out_test": 100},
            sampler={"rpn": 128, "roi": 64},
        )
    return settings


def distillation() -> ConfigDict:
    """Every key of the distillation, each at its default; a weight of 0 switches a term off."""
    return schema(DistillConfig)


def schema(settings: type) -> ConfigDict:
    """The fields of a settings dataclass as keys of a config, with their defaults.

    A default of None, which the dataclass fills in by its other fields, becomes an empty place of
    the field's type, so that the command line can set it.
    """
    config = ConfigDict()
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        value = field.default
        if field.name in TERMS:
            value = schema(TERMS[field.name])
        elif value is None:
            kinds = [kind for kind in get_args(hints[field.name]) if kind is not type(None)]
            value = placeholder(float if float in kinds else kinds[0])
        config[field.name] = value
    return config


def small_optimizer() -> dict[str, Any]:
    """AdamW: in some hundred steps from scratch it goes much further than SGD."""
    return {
        "optimizer": "adamw",
        "learning_rate": 1.5e-3,
        "b2": 0.99,
        "weight_decay": 0.02,
        "weight_decay_mask": "kernels",
        "warmup_steps": 50,
        "warmup_factor": 0.01,
        "decay_at": (0.7, 0.9),  # shares of the run
        "clip_norm": 1.0,  # from scratch, one picture can throw the heads off for good
    }


def small_distillation() -> ConfigDict:
    """The default form of the three terms, with nodes for small maps."""
    config = distillation()
    config.pixel_relation.nodes = (16,)
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The same recipe made small enough to run two steps on drawn pictures in a test.

    Models keep their class and their losses; pictures, widths, counts and the number of levels (P4
    and P5) shrink.
    Weights that would have to be loaded are drawn at random, by name.
    """
    config.data.train, config.data.val = "shapes:8", "shapes:4:1"
    config.data.canvases = ((96, 96),)
    config.data.shorter, config.data.longer = 64, 96
    config.data.max_boxes = 10
    config.train.update(
        batch_size=2,
        epochs=0.0,
        steps=2,
        learning_rate=0.01,  # recipes that differ in no more than this share a compiled program
        warmup_steps=1,
        decay_at=(),
        log_every=1,
        checkpoint_every=2,
        eval_every=0,
    )
    config.eval.batch_size = 2
    _shrink(config.student)
    config.student.init = ""
    if config.teacher is not None:
        if config.teacher.detector is None:
            config.teacher.update(config.student.to_dict())
        _shrink(config.teacher)
        config.teacher.checkpoint, config.teacher.init = "", "random"
    if config.distill is not None and config.distill.get("pixel_relation"):
        config.distill.pixel_relation.nodes = (8,)
    return config


def _shrink(model: ConfigDict) -> None:
    small = {
        "backbone": {"depth": 10, "width": 8, "groups": 1, "norm": "gn", "frozen_stages": 0},
        "channels": 16,
        "min_level": 4,
        "max_level": 5,
        "test": {"pre_nms": 50, "max_out": 20},
    }
    if model.detector == "retinanet":
        small |= {"head_convs": 1}
    else:
        small |= {
            "fc": 32,
            "proposals": {"pre_nms": 50, "max_out": 30, "pre_nms_test": 50, "max_out_test": 30},
            "sampler": {"rpn": 32, "roi": 16},
        }
    model.update(ConfigDict(small))
