"""Vector quantization of many rows to a palette: median cut, then k-means that searches near groups only.

One step of Lloyd's algorithm (1982) compares every row with every entry: for a million rows of 45 numbers and
65,536 entries that is 6 TFLOP. Median cut leaves the entries in a tree, so that a row is compared with a few
of its branches alone (an inverted file, Jegou et al., 2011), at a fiftieth of the work.
"""

import numpy as np

STEPS = 3  # of k-means after the cut
BRANCH_BITS = 8  # 2^8 branches of the tree, each with the other bits' entries
NEAR = 4  # branches that a row is compared with
PIECE = 1 << 15  # rows at a time


def palette(rows: np.ndarray, bits: int, steps: int = STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Quantize rows [N, D] to labels [N] into at most 2^bits rows; exact when that many suffice.

    Equal rows give equal results, and each step lowers the mean squared error. Memory: thrice the rows'.
    """
    distinct, labels = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) <= 1 << bits:
        return labels.reshape(-1), distinct
    labels, entries = median_cut(rows, bits)
    for _ in range(steps):
        labels = _nearest(rows, entries, labels)
        entries = _means(rows, labels, entries)
    return labels, entries


def median_cut(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantize rows [N, D] to labels [N] into 2^bits means.

    Groups of equal size are split `bits` times where they are widest; the first bits of a label are the
    branch of the tree.
    """
    groups = np.resize(
        np.arange(len(rows)), (1, -(-len(rows) >> bits) << bits)
    )  # some rows twice, to come out even
    for _ in range(bits):
        members = rows[groups]  # [G, M, D]
        widest = members.var(1).argmax(1)  # [G]
        order = np.take_along_axis(members, widest[:, None, None], 2)[:, :, 0].argsort(1)
        groups = np.take_along_axis(groups, order, 1).reshape(2 * len(groups), -1)
    labels = np.empty(len(rows), np.int64)
    labels[groups] = np.arange(len(groups))[:, None]
    return labels, rows[groups].mean(1)


def _nearest(rows: np.ndarray, entries: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the labels of the nearest entries in the branches near each row; the old ones where nearer."""
    branches = min(1 << BRANCH_BITS, len(entries))
    tree = entries.reshape(branches, -1, entries.shape[1])  # [branches, entries each, D]
    lengths = (entries * entries).sum(1).reshape(branches, -1)  # |e|^2; |r|^2 is the same for all entries
    best = lengths.reshape(-1)[labels] - 2 * np.einsum("nd,nd->n", rows, entries[labels])
    found = labels.copy()
    near = _near_branches(rows, tree.mean(1))  # [N, NEAR]
    order = near.reshape(-1).argsort(kind="stable")  # pairs of a row and a branch, branch by branch
    ends = np.searchsorted(near.reshape(-1)[order], np.arange(branches + 1))
    for branch in range(branches):
        members = order[ends[branch] : ends[branch + 1]] // near.shape[1]
        for start in range(0, len(members), PIECE):
            piece = members[start : start + PIECE]
            distances = lengths[branch] - 2 * (rows[piece] @ tree[branch].T)  # [piece, entries each]
            closest = distances.argmin(1)
            distance = distances[np.arange(len(piece)), closest]
            nearer = distance < best[piece]
            best[piece[nearer]] = distance[nearer]
            found[piece[nearer]] = branch * tree.shape[1] + closest[nearer]
    return found


def _near_branches(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the NEAR branches [N, NEAR] whose means are nearest to each row."""
    count, lengths = min(NEAR, len(means)), (means * means).sum(1)
    near = np.empty((len(rows), count), np.int16)
    for start in range(0, len(rows), PIECE):
        distances = lengths - 2 * (rows[start : start + PIECE] @ means.T)
        near[start : start + PIECE] = np.argpartition(distances, count - 1, axis=1)[:, :count]
    return near


def _means(rows: np.ndarray, labels: np.ndarray, entries: np.ndarray) -> np.ndarray:
    """Return the mean of each entry's rows; an entry without any stays."""
    members = np.bincount(labels, minlength=len(entries))
    sums = np.stack([np.bincount(labels, column, len(entries)) for column in rows.T], 1)
    means = sums / np.maximum(members, 1)[:, None]
    return np.where(members[:, None] > 0, means, entries).astype(rows.dtype)
