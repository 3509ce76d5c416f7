"""Where models come from: base weights, bundles, and their checks."""
