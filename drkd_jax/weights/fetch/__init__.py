"""Downloads weights that are given by name: an address, a hub's file, or a published model."""
