"""posjax: position encodings and long context in JAX."""
