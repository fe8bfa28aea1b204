"""A job a file, and the Python API: a typed Request is prepared (headers only), then run, and a Report comes out."""
