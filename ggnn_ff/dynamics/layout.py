"""What a run folder says, for those who write it and those who read it."""

ENERGY_COLUMNS = ["step", "time_fs", "potential_eV", "kinetic_eV", "total_eV", "temperature_K"]
"""Header of `energies.csv`."""

ENSEMBLES = ("nve", "langevin", "nose-hoover")
"""`ensemble` in `run.json`."""

RUNNING, COMPLETE = "running", "complete"
STOPPED = "stopped: "
"""`status` in `run.json`; after `STOPPED` comes the reason."""
