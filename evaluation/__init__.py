"""Evaluation: bits/dim reports and sample export. Imports training for checkpoints; training never imports this."""
