"""Running molecular dynamics, watched and resumable."""
