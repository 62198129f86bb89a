"""Labelled structures: reading, splitting, checking and making them."""
