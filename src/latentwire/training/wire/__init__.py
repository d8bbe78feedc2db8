"""Training of a latent wire: its encoder and adapters, in front of frozen readers."""
