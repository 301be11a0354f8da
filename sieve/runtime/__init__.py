"""Whole-or-absent files, the cache, progress, memory and threads."""
