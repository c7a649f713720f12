"""What the guard costs, as a ratio to a floor measured in the same run: ``make bench``."""
