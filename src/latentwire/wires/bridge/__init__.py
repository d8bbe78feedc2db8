"""Bridges: a frozen source model reads the context, and a translator makes latents of what it computed.

A bridge is a latent wire whose encoder is of the kind `source`; adapters, arms, controls, training and checkpoints
are those of any latent wire.
"""
