"""Slow, obvious NumPy: each function follows its definition, in float64, with loops."""

from __future__ import annotations

import math

import numpy as np


def random_boxes(rng, shape, side=64.0, smallest=1.0, whole=False):
    """Boxes in a square image; whole corners make overlaps exact and ties common."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    low = rng.uniform(0, side - smallest, (*shape, 2))
    high = np.minimum(low + smallest + rng.uniform(0, side / 2, (*shape, 2)), side)
    boxes = np.concatenate([low, high], axis=-1)
    if whole:
        boxes = np.floor(boxes)
        boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    return boxes.astype(np.float32)


def iou(a, b):
    """Overlap of two boxes."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inter = width * height
    union = sum(max(0.0, c[2] - c[0]) * max(0.0, c[3] - c[1]) for c in (a, b)) - inter
    return inter / union if union > 0 else 0.0


def pairwise_iou(a, b):
    """Overlap of all pairs."""
    return np.array([[iou(p, q) for q in b] for p in a], np.float64).reshape(len(a), len(b))


def encode(anchor, box, stds):
    """Regression target of one anchor and one box."""
    anchor, box = np.asarray(anchor, np.float64), np.asarray(box, np.float64)
    out = []
    for axis in (0, 1):
        side, goal = anchor[axis + 2] - anchor[axis], box[axis + 2] - box[axis]
        shift = (box[axis + 2] + box[axis] - anchor[axis + 2] - anchor[axis]) / 2 / side
        out.append((shift, math.log(goal / side)))
    (dx, dw), (dy, dh) = out
    return np.array([dx, dy, dw, dh]) / np.asarray(stds)


def nms(boxes, scores, valid, groups, threshold):
    """The greedy loop; overlap and threshold are compared in float32, as in the program."""
    threshold = np.float32(threshold)
    order = sorted(np.flatnonzero(valid), key=lambda i: (-scores[i], i))
    kept = []
    for i in order:
        rivals = [k for k in kept if groups is None or groups[k] == groups[i]]
        if all(np.float32(iou(boxes[k], boxes[i])) <= threshold for k in rivals):
            kept.append(i)
    keep = np.zeros(len(boxes), bool)
    keep[kept] = True
    return keep


def bilinear(plane, y, x, ends=None):
    """One sample of an [h, w, C] map that ends at `ends` (h, w)."""
    height, width = ends or plane.shape[:2]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(plane.shape[2])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    top = plane[y0, x0] * (1 - fx) + plane[y0, x1] * fx
    bottom = plane[y1, x0] * (1 - fx) + plane[y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def clear_of(value, edge):
    """Fails if rounding could move a number across a jump; equality is allowed."""
    assert value == edge or abs(value - edge) > 1e-5 * max(abs(edge), 1), (value, edge)


def roi_align(maps, boxes, levels, strides, size, samples, aligned, sizes=None):
    """RoIAlign of a batch, sample by sample; 0 samples: as many as a bin has pixels."""
    maps = [np.asarray(m, np.float64) for m in maps]
    boxes = np.asarray(boxes, np.float64)
    num_images, num_regions = boxes.shape[:2]
    out = np.zeros((num_images, num_regions, size, size, maps[0].shape[-1]))
    for b, r in np.ndindex(num_images, num_regions):
        level = levels[b, r]
        plane, stride = maps[level][b], strides[level]
        ends = None if sizes is None else tuple(-(-int(side) // stride) for side in sizes[b])
        x0, y0, x1, y1 = boxes[b, r] / stride - (0.5 if aligned else 0.0)
        width, height = x1 - x0, y1 - y0
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        down, across = samples or math.ceil(height / size), samples or math.ceil(width / size)
        if not samples:
            for cells in (height / size, width / size):
                clear_of(cells, round(cells))
        for i, j in np.ndindex(size, size):
            for k, m in np.ndindex(max(down, 0), max(across, 0)):
                y = y0 + (i + (k + 0.5) / down) * height / size
                x = x0 + (j + (m + 0.5) / across) * width / size
                for place, end in zip((y, x), ends or plane.shape, strict=False):
                    clear_of(place, -1)
                    clear_of(place, end)
                out[b, r, i, j] += bilinear(plane, y, x, ends) / (down * across)
    return out


def overlaps_as_written(a, b):
    """Overlaps of all pairs in float32, rounded after each operation, as in PyTorch."""
    assert a.dtype == b.dtype == np.float32
    corner, other = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    common = np.prod(np.maximum(other - corner, 0), axis=-1)
    areas = [np.prod(x[:, 2:] - x[:, :2], axis=-1) for x in (a, b)]
    return common / (areas[0][:, None] + areas[1] - common)


def match(iou, valid, positive, negative, low_quality, eligible, overwrite):
    """The assigner's steps, for one anchor and one ground truth at a time."""
    num_anchors, _ = iou.shape
    truths = [int(g) for g in np.flatnonzero(valid)]
    index = np.zeros(num_anchors, int)
    state = np.full(num_anchors, "ignored", object)
    for a in np.flatnonzero(eligible):
        best = -1.0
        for g in truths:
            if iou[a, g] > best:
                best, index[a] = iou[a, g], g
        if best < negative:
            state[a] = "negative"
        if truths and best >= positive:
            state[a] = "positive"
    if low_quality is not None and eligible.any():
        for g in truths:
            best = max(iou[a, g] for a in np.flatnonzero(eligible))
            if best < low_quality or best == 0:
                continue
            for a in np.flatnonzero(eligible):
                if iou[a, g] == best:
                    state[a] = "positive"
                    if overwrite:
                        index[a] = g
    return index, state == "positive", state == "negative"


def prepare(image, size, flip, mean, std):
    """One image: normalised and mirrored, 0 in the padding."""
    height, width = size
    out = np.zeros(image.shape, np.float64)
    for y in range(height):
        for x in range(width):
            source = width - 1 - x if flip else x
            out[y, x] = (image[y, source].astype(np.float64) - mean) / std
    return out
