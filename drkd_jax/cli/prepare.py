"""``python -m drkd_jax prepare``: unzipped COCO folders to a TFDS data folder."""

from __future__ import annotations

from collections.abc import Sequence

from drkd_jax.cli.arguments import Parser
from drkd_jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Writes one split of `coco/2017` and prints the source spec that reads it.

    Raises:
        UserError: wrong arguments, or data that cannot be prepared.
    """
    parser = Parser(
        "prepare",
        "Makes tfds:coco/2017 from unzipped COCO pictures and their instances file, without "
        "TensorFlow.",
    )
    parser.add_argument("dataset", help="tfds:coco/2017")
    parser.add_argument("--images", required=True, help="folder of pictures, as train2017")
    parser.add_argument("--instances", required=True, help="instances_train2017.json")
    parser.add_argument("--split", required=True, help="train, validation or test")
    parser.add_argument("--data-dir", default="~/tensorflow_datasets", help="TFDS's data folder")
    arguments = parser.parse_args(list(argv))
    if arguments.dataset != "tfds:coco/2017":
        raise UserError(f"prepare {arguments.dataset}: only tfds:coco/2017 can be prepared")

    from drkd_jax.data.prepare import prepare_tfds  # needs a second to import

    folder = prepare_tfds(
        arguments.images, arguments.instances, arguments.split, arguments.data_dir
    )
    print(f"{folder}\nuse it as tfds:coco/2017:{arguments.split}@{arguments.data_dir}")
    return 0
