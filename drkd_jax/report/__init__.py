"""What finished runs show to people: intervals, figures, curves, tables and the HTML page.

Nothing here trains. A file may read training, models, distill, data and evaluation; the demo and
the command line read this package. ``paired`` knows arrays and plain COCO lists only.
"""
