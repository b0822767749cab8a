"""What is taken for what: the confusion matrix as far as it can be read, its largest entries, and all of it as CSV."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scripts.drawing.page import table
from scripts.error_report.charts import heat, shortened
from scripts.storage.shared_text import csv_cell


SHOWN_CLASSES = 24  # as many fit side by side; of more, those with the most wrong pixels
LARGEST = 15
LEAST_SHARE = 0.001

STYLE = """
.matrix td { padding: .15rem .3rem; text-align: right; min-width: 1.9rem; font-size: .8rem; }
.matrix th { padding: .15rem .4rem; font-weight: normal; font-size: .85rem; white-space: nowrap; }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; vertical-align: middle; }
"""


@dataclass
class Confusion:
    """Pixels of one class that are taken for another."""

    truth: int
    prediction: int
    pixels: int
    share_of_class: float
    share_of_errors: float


def largest_confusions(confusion: np.ndarray, number: int = LARGEST) -> list[Confusion]:
    """The pairs of classes behind the most wrong pixels, most first; none behind less than `LEAST_SHARE` of them.

    Args:
        confusion: `(K, K + 1)`, see `evaluate_split`.
    """
    wrong = confusion[:, : len(confusion)].copy()
    np.fill_diagonal(wrong, 0)
    of_class, errors = confusion.sum(axis=1), confusion.sum() - np.trace(confusion)
    least = max(LEAST_SHARE * errors, 1)
    pairs = np.argsort(-wrong, axis=None, kind="stable")[:number]
    return [
        Confusion(int(row), int(column), int(pixels), float(pixels / of_class[row]), float(pixels / errors))
        for row, column in zip(*np.unravel_index(pairs, wrong.shape), strict=True)
        if (pixels := wrong[row, column]) >= least
    ]


def shown_classes(confusion: np.ndarray) -> list[int]:
    """The classes of the truth or a prediction, in their order; of many, those with the most wrong pixels."""
    square = confusion[:, : len(confusion)]
    missed, found = confusion.sum(axis=1), square.sum(axis=0)
    wrong = missed + found - 2 * np.diag(square)
    present = np.flatnonzero(missed + found)
    most = present[np.argsort(-wrong[present], kind="stable")][:SHOWN_CLASSES]
    return sorted(most.tolist())


def matrix(confusion: np.ndarray, names: Sequence[str]) -> str:
    """The matrix as a table: of each class of the truth (a row) the percentages predicted as each class.

    Where not all classes are shown, a last column takes what was predicted as one of the others.
    """
    shown = shown_classes(confusion)
    truths = [index for index in shown if confusion[index].any()]
    rest = len(shown) < len(names) and bool(np.delete(confusion, shown, axis=1)[shown].any())
    head = "".join(f"<th scope='col'>{html.escape(shortened(names[index]))}</th>" for index in shown)
    head += "<th scope='col'><i>all others</i></th>" if rest else ""
    lines = []
    for truth in truths:
        total = int(confusion[truth].sum())
        cells = []
        for index in [*shown, *([None] if rest else [])]:
            pixels = total - int(confusion[truth, shown].sum()) if index is None else int(confusion[truth, index])
            share = pixels / total
            taken = "any other class" if index is None else names[index]
            title = f"{names[truth]} taken for {taken}: {100 * share:.2f} %, {pixels} px"
            cells.append(
                f"<td style='{heat(share, index == truth)}' title='{html.escape(title, quote=True)}'>"
                f"{f'{100 * share:.0f}' if share >= 0.005 else ''}</td>"
            )
        lines.append(f"<tr><th scope='row'>{html.escape(shortened(names[truth]))}</th>{''.join(cells)}</tr>")
    words = (
        "Each row is a class of the truth, each column what was predicted there, in % of the row's pixels: blue is "
        "right, orange wrong, blank less than half a per cent. The pointer shows exact figures."
    )
    return (
        f'<p>{words}</p><div class="wide"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def largest_table(confusions: Sequence[Confusion], cells: Sequence[str]) -> str:
    """The largest confusions as a table. `cells`: HTML of each class."""
    rows = [
        (
            cells[pair.truth],
            cells[pair.prediction],
            f"{100 * pair.share_of_class:.1f}",
            f"{100 * pair.share_of_errors:.1f}",
        )
        for pair in confusions
    ]
    return table(rows, head=("truth", "taken for", "% of the class", "% of all wrong pixels"))


def csv_link(confusion: np.ndarray, names: Sequence[str]) -> str:
    """A link to all counts of pixels, which lie in the page."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    cells = [csv_cell(name) for name in names]
    writer.writerow(["truth \\ prediction", *cells])
    writer.writerows([cell, *map(int, row[: len(names)])] for cell, row in zip(cells, confusion, strict=True))
    data = base64.b64encode(buffer.getvalue().encode()).decode("ascii")
    return f'<a download="confusion.csv" href="data:text/csv;charset=utf-8;base64,{data}">all pixel counts as CSV</a>'
