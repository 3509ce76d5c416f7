"""Structured text and values: the prose inside is moderated, the rest is kept."""
