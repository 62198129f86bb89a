"""Geometric graph neural networks as molecular-dynamics force fields."""
