"""Where potentials run: each host converts, calls, converts."""
