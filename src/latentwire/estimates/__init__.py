"""What a study will take: whether it fits, how long, and how much on each offer of a GPU."""
