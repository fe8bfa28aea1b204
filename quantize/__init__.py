"""Decides the type of each tensor, and makes the bytes."""
