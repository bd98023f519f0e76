"""Helpers that know nothing of segmentation: files, threads, devices, call syntax."""
