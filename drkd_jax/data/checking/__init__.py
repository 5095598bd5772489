"""Checks data sets for errors and oddities, before and at the start of a run."""
