"""What several test files build: tiny models, wires, studies, and the slow references they are held to."""
