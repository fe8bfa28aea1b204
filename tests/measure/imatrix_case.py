"""What llama-imatrix was asked about the tiny model of tests/runner/tiny_gguf.py."""

N_CTX, CHUNKS = 128, 4
TEXT = "the cat and the hat in a land that had a thin can. " * 40
