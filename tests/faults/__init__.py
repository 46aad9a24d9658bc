"""Faults under a load that remembers what it was told: `make faults`, and a short form of it in `make live`."""
