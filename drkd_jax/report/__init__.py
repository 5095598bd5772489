"""What a finished run shows to people: drawn boxes, figures, tables, and the demo that makes them.

A file here may read training, models, distill, data and evaluation; nothing but the command line
reads this room. ``bootstrap`` knows arrays and plain COCO lists only.
"""
