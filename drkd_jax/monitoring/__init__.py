"""What watches a run: numbers, TensorBoard, traces, and warnings of losses that say nothing."""
