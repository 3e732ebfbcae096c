"""Metrics, judged runs, suites of prompts and the papers' claims."""
