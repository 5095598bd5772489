"""Pure functions on padded arrays with ``valid`` masks: static shapes, safe under jit and vmap.

One file per operation; import the file (``from drkd_jax.ops import nms``), not names out of it.
"""
