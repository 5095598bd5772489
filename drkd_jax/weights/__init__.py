"""Weights of other libraries: their files, their names, their layouts."""
