"""Reads files of other programs purely as data: arrays by their keys, without running code."""
