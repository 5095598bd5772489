"""DRKD's official form as one would write it in PyTorch for speed, for the comparison of times.

`crosscheck/reference` is the plain form, image by image and sample by sample, too slow for
training; this one uses convolutions and torchvision's RoIAlign. Norms and statistics are over all
images of the device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

WEIGHTS = (1e-3, 4e-3, 2.4e-3)  # pixel relation, instance relation, instance feature
NODES = (64, 64, 256)
SIZE = 3  # bins of a region along each side
MOST = 256  # boxes that the random filter has outputs for


class GraphUnit(nn.Module):
    """phi(x) = x + BN(extend(graph(x))), x [B, C, H, W]."""

    def __init__(self, channels: int, nodes: int):
        super().__init__()
        self.state = nn.Conv2d(channels, 2 * nodes, 1)
        self.projection = nn.Conv2d(channels, nodes, 1)
        self.adjacency = nn.Linear(nodes, nodes)
        self.mix = nn.Linear(2 * nodes, 2 * nodes, bias=False)
        self.extend = nn.Conv2d(2 * nodes, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        """Embeds a map."""
        state, projection = self.state(x).flatten(2), self.projection(x).flatten(2)
        nodes = state @ projection.transpose(1, 2)
        talked = torch.relu(nodes + self.adjacency(nodes))
        mixed = self.mix(talked.transpose(1, 2)).transpose(1, 2)
        spread = (mixed @ projection).unflatten(2, x.shape[2:])
        return x + self.norm(self.extend(spread))


class RelationUnit(nn.Module):
    """z = x + W(psi g(x)) for the boxes x [n, D] of one image."""

    def __init__(self, numbers: int):
        super().__init__()
        self.first, self.second, self.value = (nn.Linear(numbers, numbers // 2) for _ in range(3))
        self.back = nn.Linear(numbers // 2, numbers)
        self.filter = nn.Linear(numbers, MOST).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Enhances the boxes."""
        weights = torch.softmax(self.filter(x)[:, : len(x)], dim=-1)
        psi = torch.softmax(self.first(x) @ self.second(x).T * weights, dim=-1)
        return x + self.back(psi @ self.value(x))


class DRKD(nn.Module):
    """The three terms, weighted, between two pyramids of equal width."""

    def __init__(self, strides: tuple[int, ...], channels: int = 256, levels: int = 2):
        super().__init__()
        self.strides, self.levels = strides, levels
        nodes = [NODES[min(i, len(NODES) - 1)] for i in range(len(strides))]

        def each(make):
            return nn.ModuleList(make() for _ in range(levels))

        self.student_units = nn.ModuleList(GraphUnit(channels, m) for m in nodes)
        self.teacher_units = nn.ModuleList(GraphUnit(channels, m) for m in nodes)
        self.pixel_adaptation = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in nodes)
        numbers = SIZE * SIZE * channels
        self.student_relations = each(lambda: RelationUnit(numbers))
        self.teacher_relations = each(lambda: RelationUnit(numbers))
        self.relation_adaptation = each(lambda: nn.Conv2d(channels, channels, 1))
        self.feature_adaptation = each(lambda: nn.Conv2d(channels, channels, 1))

    def forward(
        self, student: list[Tensor], teacher: list[Tensor], boxes: list[Tensor]
    ) -> dict[str, Tensor]:
        """Weighted losses of maps [B, C, h, w] and boxes [n, 4] per image, in canvas pixels."""
        pixel = instance = feature = student[0].new_zeros((), dtype=torch.float32)
        for i in range(len(self.strides)):
            phi_s = self.pixel_adaptation[i](self.student_units[i](student[i]))
            phi_t = self.teacher_units[i](teacher[i])
            pixel = pixel + torch.dist(phi_t, phi_s)
        counts = [len(rows) for rows in boxes]
        for i in range(self.levels):
            cut_s, cut_t = (
                roi_align(maps[i], boxes, SIZE, 1 / self.strides[i]) for maps in (student, teacher)
            )
            mapped = self.feature_adaptation[i](cut_s)
            for s, t, f in zip(
                cut_s.split(counts), cut_t.split(counts), mapped.split(counts), strict=True
            ):
                if not len(s):
                    continue
                feature = feature + torch.dist(t, f)
                z_s = self.student_relations[i](s.flatten(1)).unflatten(1, s.shape[1:])
                z_t = self.teacher_relations[i](t.flatten(1)).unflatten(1, t.shape[1:])
                instance = instance + torch.dist(z_t, self.relation_adaptation[i](z_s))
        return {
            name: weight * loss
            for name, weight, loss in zip(
                ("pixel_relation", "instance_relation", "instance_feature"),
                WEIGHTS,
                (pixel, instance, feature),
                strict=True,
            )
        }
