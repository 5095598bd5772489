"""Presents finished runs: intervals, figures, curves, tables and the HTML page.

Nothing here trains. Files may import training, models, distill, data and evaluation; the demo and
the command line import this package. ``paired`` uses only arrays and plain COCO lists.
"""
