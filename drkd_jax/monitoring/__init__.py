"""Monitoring of a run: metrics, TensorBoard, traces, and warnings about uninformative losses."""
