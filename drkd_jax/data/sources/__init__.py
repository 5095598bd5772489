"""The sources of images and boxes; all return the same record."""

from drkd_jax.data.sources.opening import JoinedSource, Part, open_source
from drkd_jax.data.sources.records import Source

__all__ = ["JoinedSource", "Part", "Source", "open_source"]
