"""Data: generated worlds, shipped pictures, and loaders of public formats."""
