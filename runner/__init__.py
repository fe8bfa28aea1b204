"""Loads, places and talks: everything that runs a model."""
