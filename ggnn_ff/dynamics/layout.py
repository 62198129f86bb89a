"""What a run folder says, for those who write it and those who read it."""

ENERGY_COLUMNS = ["step", "time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K"]
"""Header of `energies.csv`."""

RUNNING, COMPLETE = "running", "complete"
STOPPED = "stopped: "
"""`status` in `run.json`; after `STOPPED` comes the reason."""
