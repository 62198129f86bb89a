"""Architectures compared: the same data and time for each, then accuracy, speed, smoothness and dynamics."""
