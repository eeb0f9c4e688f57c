"""The mode that edits images: its command, the images and their classes, fine-tuning, and what it writes."""
