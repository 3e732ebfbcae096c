"""Metrics, evaluation of runs, suites of prompts and tests of the papers' claims."""
