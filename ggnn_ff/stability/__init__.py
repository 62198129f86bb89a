"""Checks on simulated trajectories: conservation laws, structure, and a report with verdicts."""
