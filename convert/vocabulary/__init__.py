"""A checkpoint folder's tokenizer files go in; what GGUF stores under `tokenizer.*` comes out, checked."""
