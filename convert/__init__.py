"""Decides what a GGUF file contains: names, order, shapes and metadata of a converted checkpoint."""
