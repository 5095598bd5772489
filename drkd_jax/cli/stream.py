"""Pictures of any number and size as batches: read ahead by threads, grouped by canvas.

Letters: B pictures of a batch, H W pixels of a picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from drkd_jax.data.pipeline import PipelineConfig, pixel_type
from drkd_jax.data.transforms import fit, resize
from drkd_jax.errors import UserError
from drkd_jax.types import Batch


class Picture(NamedTuple):
    """A picture that was read, or why it could not be.

    Attributes:
        position: among all.
        image: RGB; None where there is a fault.
        fault: in words, or "".
    """

    position: int
    image: UInt8[np.ndarray, "H W 3"] | None
    fault: str = ""


def read_pictures(
    paths: Sequence[Path],
    decode: Callable[[bytes, str], np.ndarray],
    threads: int = 4,
    ahead: int = 16,
) -> Iterator[Picture]:
    """Reads pictures in their order, some of them ahead; one that is broken stops nothing.

    Args:
        paths: of the files.
        decode: from a file's bytes and its name to RGB.
        threads: that read; 0 reads in the caller's.
        ahead: pictures that are held at most.
    """

    def read(index: int) -> Picture:
        path = paths[index]
        try:
            return Picture(index, decode(path.read_bytes(), str(path)))
        except OSError as error:
            return Picture(index, None, f"{path}: cannot be read ({error.strerror or error})")
        except (UserError, MemoryError) as error:
            return Picture(index, None, str(error) or f"{path}: there is too little memory for it")

    if not threads:
        yield from map(read, range(len(paths)))
        return
    waiting: deque[Future[Picture]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(len(paths)):
                waiting.append(pool.submit(read, index))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batched(
    pictures: Iterable[Picture], config: PipelineConfig
) -> Iterator[tuple[Batch, list[Picture]]]:
    """Batches of one canvas each, as soon as one is full; the last ones may not be.

    Args:
        pictures: without a fault.
        config: canvases, sizes and the pictures of a batch.

    Yields:
        (batch, its pictures by row). `index` of the batch is the picture's position.
    """
    waiting: dict[int, list[tuple[Picture, tuple[int, int]]]] = {}
    for picture in pictures:
        assert picture.image is not None
        height, width = picture.image.shape[:2]
        canvas, size = fit(
            height, width, config.shorter, config.longer, config.canvases, config.resize
        )
        group = waiting.setdefault(canvas, [])
        group.append((picture, size))
        if len(group) == config.batch_size:
            yield _batch(waiting.pop(canvas), config.canvases[canvas], config)
    for canvas, group in sorted(waiting.items()):
        yield _batch(group, config.canvases[canvas], config)


def _batch(
    group: Sequence[tuple[Picture, tuple[int, int]]],
    canvas: tuple[int, int],
    config: PipelineConfig,
) -> tuple[Batch, list[Picture]]:
    num, most = config.batch_size, config.max_boxes
    batch = Batch(
        images=np.zeros((num, *canvas, 3), pixel_type(config)),
        sizes=np.zeros((num, 2), np.int32),
        flip=np.zeros(num, bool),
        boxes=np.zeros((num, most, 4), np.float32),
        labels=np.zeros((num, most), np.int32),
        valid=np.zeros((num, most), bool),
        picture_valid=np.arange(num) < len(group),
        index=np.full(num, -1, np.int32),
        scale=np.ones((num, 2), np.float32),
    )
    for row, (picture, size) in enumerate(group):
        assert picture.image is not None
        height, width = picture.image.shape[:2]
        images = np.asarray(batch.images)
        images[row, : size[0], : size[1]] = resize(picture.image, size, images.dtype)
        batch.sizes[row], batch.index[row] = size, picture.position
        batch.scale[row] = size[1] / width, size[0] / height
    return batch, [picture for picture, _ in group]
