"""Engines: token ids in, ids and scores out."""
