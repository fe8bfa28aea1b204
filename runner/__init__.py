"""Loads, places, talks and measures: everything that runs a model."""
