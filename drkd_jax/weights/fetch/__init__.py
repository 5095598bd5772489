"""Weights that are named, not placed: from an address, a hub, or published."""
