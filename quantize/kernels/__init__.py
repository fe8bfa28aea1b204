"""SIMD encoders of the GGML types, byte-identical to llama.cpp's."""
