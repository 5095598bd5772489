"""The common part of all recipes: every key of a run with its default, and the ``:tiny`` form.

A recipe is a file with ``get_config(name=None) -> ConfigDict``. It starts from ``base()`` and
changes some keys. ``--config=FILE.py:FORM`` passes FORM as ``name``; every recipe has ``tiny``.
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
    config.seed = 0  # seed of initial weights, order of the images, and sampling

    data = config.data = ConfigDict()
    # shapes:N[:SEED] | coco:IMAGES_DIR:INSTANCES_JSON | tfds:coco/2017:SPLIT[@DATA_DIR]
    data.train = "shapes:1024"
    data.val = "shapes:200:1"  # data for evaluation; the same kinds of sources
    data.canvases = ((800, 1344), (1344, 800))  # height, width; multiples of the coarsest stride
    data.shorter = 800  # pixels of the shorter side after resizing ...
    data.longer = 1333  # ... unless the longer side would pass this
    # mmdet | torchvision: the library whose rule is used; torchvision's keeps floats. stretch:
    # every image gets the height data.shorter and the width data.longer
    data.resize = "mmdet"
    data.max_boxes = 100  # rows for ground truth in a batch
    data.flip = 0.5  # probability of a mirrored training image
    data.scale_jitter = (1.0, 1.0)  # range of the random factor on a training image's sides
    data.colour_jitter = 0.0  # strength of random brightness, contrast and saturation, 0..1
    data.drop_empty = True  # leave out training images without a box or under 32 pixels
    data.on_error = "stop"  # stop | skip: what to do at an image or entry that cannot be read
    data.exif = "auto"  # auto | stored | turned: the pixels that boxes of rotated photos refer to
    data.depth = 0  # bits that 16-bit images use, 8 to 16; 0 for all 16
    data.num_threads = placeholder(int)  # threads that read images; empty: one per core, 4 to 16
    data.num_workers = 0  # worker processes; 0 reads in threads
    data.prefetch = placeholder(int)  # batches read ahead; empty: as many as threads, at least 4
    data.mean = IMAGENET_MEAN  # subtracted from the channels, which are 0..255 ...
    data.std = IMAGENET_STD  # ... and then these divide them
    data.channels = "rgb"  # rgb | bgr: channel order of the student's input, and of mean and std

    # Every key of every detector (drkd_jax/models/settings.py); an empty one has the detector's
    # default, which its convention may change.
    config.student = model_keys()
    config.student.init = ""  # "" from scratch; a work folder, or a file (docs/weights.md)

    config.teacher = placeholder(ConfigDict)  # None: no teacher
    config.distill = placeholder(ConfigDict)  # None: plain training

    train = config.train = ConfigDict()
    train.batch_size = 16  # images per step over all devices
    train.accumulate = 1  # process a step's batch in this many parts, to save memory
    train.epochs = 0.0  # length of the run; 0 if ``steps`` gives it
    train.steps = 0  # length of the run; 0 if ``epochs`` gives it
    train.learning_rate = 0.02  # the largest, after the warm-up
    train.linear_rate_for = 0  # batch size that the rate is meant for; 0 does not scale the rate
    train.optimizer = "sgd"  # sgd | adamw
    train.momentum = 0.9  # of sgd
    train.b1, train.b2 = 0.9, 0.999  # of adamw
    train.weight_decay = 1e-4  # share of a parameter that a step removes, times the rate
    train.weight_decay_mask = "all"  # all | kernels (no decay on biases and norms)
    train.warmup_steps = 500  # first steps, in which the learning rate rises
    train.warmup_factor = 0.001  # the first step's share of the learning rate
    train.schedule = "step"  # step | cosine (which ignores decay_at and decay_factor)
    train.decay_at = ()  # when the rate falls: shares of the run under 1, else epochs or steps
    train.decay_factor = 0.1  # what the rate is multiplied by at these times
    train.final_factor = 0.0  # for cosine: the share of the rate that is left at the end
    train.clip_norm = 0.0  # largest gradient norm of student and distiller each; 0 for no limit
    train.ema = 0.0  # decay of the student's moving average, evaluated and saved; 0 for none
    train.precision = "float32"  # float32 | bfloat16: dtype that the networks compute in
    train.parallel = "jit"  # jit | pmap: the same losses, see docs/several-machines.md
    train.log_every = 50  # steps
    train.log_gradients = 0  # steps between two comparisons of the terms' gradients; 0 for never
    train.checkpoint_every = 1000  # steps
    train.eval_every = 0  # steps; 0 evaluates only at the end
    train.early_stop = 0  # evaluations without a better AP that end the run; 0 for never
    train.tensorboard_images = 0  # validation images that an evaluation draws into TensorBoard
    train.keep = 2  # checkpoints kept beside the best one
    train.silence_steps = 200  # steps after which a warning names a silent term
    train.silence_share = 1e-3  # a term under this share of the loss is silent

    config.eval = ConfigDict()
    config.eval.batch_size = 16  # images per step in an evaluation
    config.eval.max_images = 0  # score only this many first images; 0 for all
    config.eval.max_detections = 100  # counted detections per class and image; COCO's are 100
    config.eval.evaluator = "faster"  # faster | pycocotools: the same numbers, several times slower
    return config


def with_teacher(config: ConfigDict, checkpoint: str, **settings: Any) -> ConfigDict:
    """Adds a teacher. Without ``settings`` its model is read from the checkpoint."""
    teacher = config.teacher = model_keys()
    teacher.checkpoint = checkpoint  # a work folder, or a file (docs/weights.md)
    teacher.init = ""  # "random" explicitly allows an untrained teacher
    teacher.evaluate = False  # measure the teacher's AP on ``data.val`` at the start
    teacher.dtype = "bfloat16"  # dtype that the teacher computes in: float32 | bfloat16
    teacher.prefix = placeholder(str)  # prefix of one model's keys in a file with several
    teacher.data = ConfigDict()  # its input format, if its file does not state it correctly
    teacher.data.mean, teacher.data.std = placeholder(tuple), placeholder(tuple)  # as the student's
    teacher.data.channels = placeholder(str)  # rgb | bgr
    teacher.update(ConfigDict(settings))
    return config


def model_keys() -> ConfigDict:
    """An empty placeholder of the right type for every setting of every detector."""
    types: dict[str, Any] = {"detector": str}
    for _, settings in DETECTORS.values():
        types |= _types(settings)
    return _places(types)


def _types(settings: Any) -> dict[str, Any]:
    """The type of each field, tuple for any tuple; nested settings become a dict of types."""
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
    return _detector("retinanet", "conv_c5", depth, backbone)


def faster_rcnn(depth: int = 50, **backbone: Any) -> ConfigDict:
    """Faster R-CNN on ResNet-FPN, P2..P6, in mmdetection's conventions."""
    return _detector("faster_rcnn", "pool", depth, backbone)


def _detector(name: str, extra: str, depth: int, backbone: dict[str, Any]) -> ConfigDict:
    usual = {"depth": depth, "norm": "frozen_bn", "frozen_stages": 1}
    return ConfigDict(
        {"detector": name, "backbone": {**usual, **backbone}, "channels": 256, "extra": extra}
    )


def small_detector(detector: str) -> ConfigDict:
    """A small version of the same detectors, to be trained from scratch on small images.

    Anchors begin at 16 pixels. GroupNorm replaces pretrained statistics, and the narrow heads start
    with a larger standard deviation than 0.01, which is meant for 256 channels.

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

    A default of None, which the dataclass derives from its other fields, becomes an empty
    placeholder of the field's type, so that the command line can set it.
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
    """AdamW: from scratch it reaches much more than SGD within some hundred steps."""
    return {
        "optimizer": "adamw",
        "learning_rate": 1.5e-3,
        "b2": 0.99,
        "weight_decay": 0.02,
        "weight_decay_mask": "kernels",
        "warmup_steps": 50,
        "warmup_factor": 0.01,
        "decay_at": (0.7, 0.9),  # shares of the run
        "clip_norm": 1.0,  # from scratch, a single image can spoil the heads permanently
    }


def small_distillation() -> ConfigDict:
    """The default form of the three terms, with few graph nodes for small maps."""
    config = distillation()
    config.pixel_relation.nodes = (16,)
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """Makes a recipe small enough to run two steps on drawn images in a test.

    Models keep their class and their losses; images, widths, counts and the number of levels (P4
    and P5) shrink. Weights that would have to be loaded are random, which is stated explicitly.
    """
    config.data.train, config.data.val = "shapes:8", "shapes:4:1"
    config.data.canvases = ((96, 96),)
    config.data.shorter, config.data.longer = 64, 96
    config.data.max_boxes = 10
    config.train.update(
        batch_size=2,
        epochs=0.0,
        steps=2,
        learning_rate=0.01,  # equal, so that recipes share a compiled program
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
