"""Pictures and boxes: three sources, one record, batches that are planned by number."""
