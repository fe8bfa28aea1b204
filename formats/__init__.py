"""The files that moe-gguf reads and writes: the ground floor of the house."""
