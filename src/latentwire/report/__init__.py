"""A study, or several, as one HTML page that opens from disk: its numbers, its samples, and what they show."""
