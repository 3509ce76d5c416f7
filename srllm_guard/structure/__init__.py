"""Structured text: moderate the prose inside of JSON, HTML, Markdown and others, keep the rest."""
