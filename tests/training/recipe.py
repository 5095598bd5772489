"""The tiny config as a config file for `train.py`."""

from ml_collections import ConfigDict

from tests.training import tiny

EVERY = 4  # steps from checkpoint to checkpoint


def get_config(name: str | None = None) -> ConfigDict:
    """Uses one of the two canvases of the other tests, to share their compiled program."""
    config = tiny.config(distilled=name != "plain")
    config["data"]["canvases"] = config["data"]["canvases"][:1]
    config["train"].update(
        checkpoint_every=EVERY, parallel="jit", precision="float32", momentum=0.9
    )
    return ConfigDict(config)
