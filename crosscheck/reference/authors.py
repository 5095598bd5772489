"""The distillers of whole maps, computed by their authors' own classes from checkouts.

Each function takes one level, maps [B, C, h, w], and returns the loss with all of the authors'
weights 1. If their value differs from ours by a known rule, it is converted here, with a comment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn

from crosscheck.reference.authors_crosskd import crosskd_of, weighting
from crosscheck.reference.foreign import classes, fill
from crosscheck.reference.layers import Parameters, linear, sub

Tensors = dict[str, Tensor]


class Level(NamedTuple):
    """One level of a case."""

    s: Tensor  # the student's map, [B, C, h, w], without f (the authors may have their own f)
    t: Tensor
    p: Parameters  # our parameters of the level, by name: adaptation.kernel and so on
    c: Tensors  # constants of the level
    boxes: list[Tensor]  # per image, pixels of the canvas
    canvas: tuple[int, int]


Loss = Callable[[dict[str, Any], Level], Tensor]


def _pointwise(kernel: Tensor) -> Tensor:
    """A kernel, inputs x outputs, as the weight of a 1x1 convolution."""
    return kernel.T[:, :, None, None]


def _spatial(kernel: Tensor) -> Tensor:
    return kernel.permute(3, 2, 0, 1)


def _align(level: Level) -> Tensors:
    """Our f by the authors' names; a bias that cancels out and ours lacks gets any number."""
    if "adaptation.kernel" not in level.p:
        return {}
    bias = level.p.get("adaptation.bias", level.c.get("bias"))
    assert bias is not None
    return {"align.weight": _pointwise(level.p["adaptation.kernel"]), "align.bias": bias}


def _widths(level: Level) -> tuple[int, int]:
    return level.s.shape[1], level.t.shape[1]


def _adapted(level: Level) -> Tensor:
    """f(s), for losses that do not apply f themselves."""
    f = sub(level.p, "adaptation")
    if not f:
        return level.s
    return linear(f, level.s.movedim(1, -1)).movedim(-1, 1).contiguous()


def _razor(folder: Path) -> dict[str, Loss]:
    losses = folder / "mmrazor/models/losses"
    (pkd_class,) = classes(losses / "pkd_loss.py", "PKDLoss")
    (cwd_class,) = classes(losses / "cwd.py", "ChannelWiseDivergence")
    (l2_class,) = classes(losses / "l2_loss.py", "L2Loss")
    (mgd_class,) = classes(losses / "mgd_loss.py", "MGDLoss")

    class Base(nn.Module):
        """Replaces mmengine's BaseModule."""

        def __init__(self, init_cfg: Any):
            super().__init__()

    connector = folder / "mmrazor/models/architectures/connectors/mgd_connector.py"
    (connector_class,) = classes(connector, "MGDConnector", BaseConnector=Base)

    def pkd(config: dict[str, Any], level: Level) -> Tensor:
        return pkd_class()(_adapted(level), level.t)

    def cwd(config: dict[str, Any], level: Level) -> Tensor:
        return cwd_class(tau=config["temperature"])(_adapted(level), level.t)

    def feature_imitation(config: dict[str, Any], level: Level) -> Tensor:
        # Theirs is the mean square; ours has the factor 1/2 of FitNets.
        found = l2_class(normalize=False, div_element=True)(_adapted(level), level.t)
        return found / 2

    def mgd(config: dict[str, Any], level: Level) -> Tensor:
        made = fill(connector_class(*_widths(level), config["masked"]), _generation(level))
        with _drawn(level):
            return mgd_class(alpha_mgd=1)(made.forward_train(level.s), level.t)

    return {"pkd": pkd, "cwd": cwd, "feature_imitation": feature_imitation, "mgd": mgd}


def _generation(level: Level) -> Tensors:
    p = sub(level.p, "generation")
    return _align(level) | {
        "generation.0.weight": _spatial(p["first"]),
        "generation.0.bias": p["first_bias"],
        "generation.2.weight": _spatial(p["second"]),
        "generation.2.bias": p["second_bias"],
    }


def _drawn(level: Level) -> Any:
    """Replaces MGD's draw: 1, above any share and so masked, for pixels that our mask drops."""
    numbers = (~level.c["kept"][:, None]).to(level.s.dtype)

    def rand(shape: tuple[int, ...]) -> Tensor:
        assert shape == numbers.shape
        return numbers

    return patch.object(torch, "rand", rand)


def _torch_distiller(folder: Path) -> dict[str, Loss]:
    path = folder / "SemSeg-distill/utils/criterion.py"
    _, loss_class = classes(path, "ChannelNorm", "CriterionCWD")

    def cwd(config: dict[str, Any], level: Level) -> Tensor:
        return loss_class("channel", "kl", config["temperature"])(_adapted(level), level.t)

    return {"cwd": cwd}


def _detection_distiller(folder: Path) -> dict[str, Loss]:
    path = folder / "mmdet/distillation/losses/cwd.py"
    (loss_class,) = classes(path, "ChannelWiseDivergence")

    def cwd(config: dict[str, Any], level: Level) -> Tensor:
        tau, (narrow, wide) = config["temperature"], _widths(level)
        module = loss_class(narrow, wide, "", tau)
        if level.p:
            fill(module, _align(level))
        # Theirs is the cross-entropy: it also contains the teacher's entropy, which has no
        # gradient. And it divides by the number of channels before f.
        logs = torch.log_softmax(level.t.flatten(2) / tau, 2)
        entropy = -(logs.exp() * logs).sum() * tau**2 / (len(logs) * wide)
        return module(level.s, level.t) * narrow / wide - entropy

    return {"cwd": cwd}


def _mgd(folder: Path) -> dict[str, Loss]:
    (loss_class,) = classes(folder / "det/mmdet/distillation/losses/mgd.py", "FeatureLoss")

    def mgd(config: dict[str, Any], level: Level) -> Tensor:
        module = loss_class(*_widths(level), "", alpha_mgd=1, lambda_mgd=config["masked"])
        with _drawn(level):
            return fill(module, _generation(level))(level.s, level.t)

    return {"mgd": mgd}


def _fgd(folder: Path) -> dict[str, Loss]:
    def unused(*_: Any, **__: Any) -> None:
        """Replaces the initialisations: all parameters are filled later."""

    path = folder / "mmdet/distillation/losses/fgd.py"
    (loss_class,) = classes(path, "FeatureLoss", constant_init=unused, kaiming_init=unused)

    def block(p: Parameters, side: str, bias: Tensor) -> Tensors:
        layers, first = f"channel_add_conv_{side}", sub(p, "first")
        return {
            f"conv_mask_{side}.weight": p["pool"][None, :, None, None],
            f"conv_mask_{side}.bias": bias,  # cancels out in the softmax; ours has none
            f"{layers}.0.weight": _pointwise(first["kernel"]),
            f"{layers}.0.bias": first["bias"],
            f"{layers}.1.weight": p["scale"][:, None, None],
            f"{layers}.1.bias": p["offset"][:, None, None],
            f"{layers}.3.weight": _pointwise(p["last"]),
            f"{layers}.3.bias": p["bias"],
        }

    def fgd(config: dict[str, Any], level: Level) -> Tensor:
        # The authors' four weights; ours are theirs divided by the first.
        others = {
            "beta_fgd": config["background"],
            "gamma_fgd": config["attention"],
            "lambda_fgd": config["relation"],
        }
        module = loss_class(*_widths(level), "", temp=config["temperature"], alpha_fgd=1, **others)
        bias = level.c["bias"][:1]
        slots = _align(level)
        for side in ("student", "teacher"):
            slots |= block(sub(level.p, side), side[0], bias)
        sizes = [{"img_shape": level.canvas}] * len(level.s)
        with _default(level.s.dtype):  # the dtype of their 1 / area, a quotient of integers
            return fill(module, slots)(level.s, level.t, level.boxes, sizes)

    return {"fgd": fgd}


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _crosskd(folder: Path) -> dict[str, Loss]:
    losses = folder / "mmdet/models/losses"
    path, helpers = losses / "pkd_loss.py", weighting(losses)
    *_, loss_class = classes(path, "norm", "pkd_loss", "PKDLoss", **helpers)

    def pkd(config: dict[str, Any], level: Level) -> Tensor:
        return loss_class()(_adapted(level), level.t)

    return {"pkd": pkd}


MAP_TERMS: dict[str, Callable[[Path], dict[str, Loss]]] = {
    "open-mmlab/mmrazor": _razor,
    "irfanICMLL/TorchDistiller": _torch_distiller,
    "pppppM/mmdetection-distiller": _detection_distiller,
    "yzd-v/MGD": _mgd,
    "yzd-v/FGD": _fgd,
    "jbwang1997/CrossKD": _crosskd,
}


def components_of(checkouts: dict[str, Path]) -> dict[str, Any]:
    """The components that need the authors' code.

    Args:
        checkouts: from `checkouts.recognised`.
    """
    known = {name: make(checkouts[name]) for name, make in MAP_TERMS.items() if name in checkouts}

    def authors_term(settings: dict[str, Any], x: Tensors, p: Tensors, c: Tensors) -> Tensors:
        term = settings["term"]
        loss, p = known[settings["repository"]][term], sub(p, f"map_terms.{term}")
        boxes = [rows[valid] for rows, valid in zip(c["boxes"], c["valid"], strict=True)]
        losses = []
        for i in range(len(settings["strides"])):
            s, t = (x[f"{side}{i}"].permute(0, 3, 1, 2).contiguous() for side in "st")
            parts = [(name.split(".", 2), value) for name, value in p.items()]
            own = {f"{part}.{rest}": v for (part, level, rest), v in parts if level == str(i)}
            found = {name: c[f"{name}{i}"] for name in ("bias", "kept") if f"{name}{i}" in c}
            level = Level(s, t.detach(), own, found, boxes, tuple(settings["canvas"]))
            losses.append(loss(settings["config"], level))
        return {term: torch.stack(losses).sum()}

    components: dict[str, Any] = {"authors_term": authors_term}
    if "jbwang1997/CrossKD" in checkouts:
        components["authors_crosskd"] = crosskd_of(checkouts["jbwang1997/CrossKD"])
    return components
