"""Models of images and words: captions written, and pairs embedded."""
