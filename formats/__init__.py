"""The files moe-gguf reads and writes, and the plan between them: the ground floor of the house."""
