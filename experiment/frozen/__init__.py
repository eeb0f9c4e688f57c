"""Runs that a config names by their work directory, and whose models stay as they are: bases and teachers."""
