"""The plan of a GGUF file, and one pass over it that writes every output."""
