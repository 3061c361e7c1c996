"""How the figures look."""

from __future__ import annotations

from typing import Any

DPI = 150
GREY = "#8a8a8a"
WINNER = "#d62728"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def matplotlib_of() -> tuple[Any, Any]:
    """Matplotlib (loaded late: half a second) and a maker of figures that needs no display."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def new(**settings: Any) -> Figure:
        figure = Figure(**settings)
        FigureCanvasAgg(figure)
        return figure

    return matplotlib, new
