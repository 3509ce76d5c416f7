"""Training of SR-LLM bundles: data, annotation, tuning, calibration."""
