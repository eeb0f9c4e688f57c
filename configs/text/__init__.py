"""Text to image: networks that are told captions."""
