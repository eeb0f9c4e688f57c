"""A run that is distilled: its frozen teacher, and the student that begins as a copy of it."""
