"""Runs on the Hugging Face Hub: weights or wire, manifest, and a model card with what was measured."""
