"""Wires and models in the forms that others serve: prompt embeddings, keys and values, Transformers folders."""
