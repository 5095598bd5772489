"""Where pictures and boxes come from: each source gives the same record."""

from drkd_jax.data.sources.opening import JoinedSource, Part, open_source
from drkd_jax.data.sources.records import Source

__all__ = ["JoinedSource", "Part", "Source", "open_source"]
