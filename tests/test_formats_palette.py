"""Palettes of SH rows: exact while they are large enough, and near to full k-means beyond."""

import numpy as np
import pytest

from splatdistill.formats.palette import median_cut, palette


def squared_error(rows, labels, entries):
    return float(((rows - entries[labels]) ** 2).sum())


def lloyd(rows, count, steps):
    """Return the squared error of k-means that compares every row with every entry."""
    entries = rows[np.random.default_rng(1).choice(len(rows), count, False)].copy()
    for _ in range(steps):
        labels = ((entries**2).sum(1) - 2 * rows @ entries.T).argmin(1)
        entries = np.stack(
            [rows[labels == k].mean(0) if (labels == k).any() else entries[k] for k in range(count)]
        )
    labels = ((entries**2).sum(1) - 2 * rows @ entries.T).argmin(1)
    return squared_error(rows, labels, entries)


def test_a_palette_is_exact_while_it_is_large_enough():
    rows = np.random.default_rng(0).normal(size=(1000, 9)).astype(np.float32)
    labels, entries = palette(rows, 10)
    assert len(entries) == 1000 and np.array_equal(entries[labels], rows)
    labels, entries = palette(np.repeat(rows[:3], 400, 0), 2)
    assert len(entries) == 3


@pytest.mark.parametrize("bits", [5, 8, 10])
def test_each_step_of_k_means_lowers_the_error(bits):
    rows = np.random.default_rng(0).normal(size=(3000, 9)).astype(np.float32)
    errors = [squared_error(rows, *palette(rows, bits, steps)) for steps in (0, 1, 2, 4)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]
    assert errors[0] == squared_error(rows, *median_cut(rows, bits))


def test_it_comes_within_a_tenth_of_full_k_means():
    rows = np.random.default_rng(0).normal(size=(4000, 24)).astype(np.float32)
    assert squared_error(rows, *palette(rows, 9)) < 1.1 * lloyd(rows, 512, 8)


def test_labels_and_entries_have_their_types_and_equal_rows_give_equal_results():
    rows = np.random.default_rng(0).normal(size=(2000, 45)).astype(np.float32)
    labels, entries = palette(rows, 8)
    assert entries.shape == (256, 45) and entries.dtype == np.float32 and labels.max() < 256
    again = palette(rows.copy(), 8)
    assert np.array_equal(labels, again[0]) and np.array_equal(entries, again[1])
