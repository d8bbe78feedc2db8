"""Training of a latent wire: its encoder and adapters, behind frozen readers."""
