"""Measurements, each one command; figures that are kept stand in LOG.md."""
