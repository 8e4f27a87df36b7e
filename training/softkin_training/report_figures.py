"""The pictures of a report, each an `<svg>` element."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import LogFormatter, PercentFormatter

from softkin_training.calibration_metrics import Bin
from softkin_training.report import Report, ScoreReport
from softkin_training.svg import DASHES, INK, MUTED, SERIES, Picture, picture

OWN = "softkin"
ALWAYS = "max_softmax"
"""Drawn however it does: everybody knows it."""
CURVES = len(SERIES)


def roc_curves(report: Report, name: str, picture_name: str) -> str:
    """ROC curves against one outlier set: the bundle's own, the best others by mean AUROC, and max softmax."""
    with picture(picture_name, f"ROC curves against {name}") as p:
        for i, score in enumerate(_drawn(report)):
            p.axes.plot(
                report.roc_rates,
                score.outliers[name].roc,
                color=SERIES[i],
                linestyle=DASHES[i],
                linewidth=2.2 if i == 0 else 1.3,
                label=_short(score.title),
                zorder=3 if i == 0 else 2,
            )
        least = max(report.roc_rates[0], 1.0 / max(2, report.inlier_rows))  # of one row the axis would have no length
        p.axes.axvline(report.alpha, color=MUTED, linewidth=0.8, linestyle=":")
        p.axes.set(xscale="log", xlim=(least, 1.0), ylim=(0.0, 1.02))
        p.axes.set(xlabel="inliers flagged (log scale)", ylabel="outliers caught")
        _percent(p)
        p.axes.legend(loc="lower right")
    return p.svg


def score_histogram(report: Report, name: str, picture_name: str) -> str:
    """Outlier scores of inliers and of one outlier set."""
    h = report.histogram
    with picture(picture_name, f"outlier scores of inliers and of {name}") as p:
        highest = 0.0
        for i, (label, counts) in enumerate((("inliers", h.inliers), (name, h.outliers[name]))):
            total = sum(counts)
            shares = [c / total for c in counts]
            highest = max(highest, *shares)
            p.axes.stairs(shares, h.edges, fill=True, color=SERIES[i], alpha=0.25)
            p.axes.stairs(shares, h.edges, color=SERIES[i], linewidth=1.3, linestyle=DASHES[i], label=_short(label))
        p.axes.set(xlabel="outlier score (first and last bar: and beyond)", ylabel="share of rows")
        p.axes.set_ylim(0, 1.25 * highest)  # room for the legend
        p.axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        p.axes.legend(loc="upper right")
    return p.svg


def p_value_histogram(report: Report, picture_name: str) -> str:
    """P-values of inliers: flat, if they are like the calibration rows."""
    counts = report.p_values.inlier_histogram
    bins, total = len(counts), sum(counts)
    with picture(picture_name, "histogram of the inliers' p-values") as p:
        edges = [i / bins for i in range(bins + 1)]
        p.axes.stairs([c / total for c in counts], edges, fill=True, color=SERIES[0], alpha=0.4)
        p.axes.axhline(1 / bins, color=INK, linewidth=1, linestyle="--", label="uniform")
        p.axes.set(xlabel="p-value", ylabel="share of inliers", xlim=(0, 1))
        p.axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        p.axes.legend(loc="lower right")
    return p.svg


def flagged_by_alpha(report: Report, picture_name: str) -> str:
    """What every alpha gives: false alarms, which should lie on the diagonal, and outliers caught."""
    v = report.p_values
    with picture(picture_name, "share of rows flagged at every alpha") as p:
        least = v.alphas[0]
        p.axes.plot([least, 1], [least, 1], color=MUTED, linewidth=1, linestyle="--", label="as promised")
        p.axes.plot(v.alphas, _positive(v.inliers_flagged), color=SERIES[0], linewidth=2.2, label="inliers")
        for i, (name, flagged) in enumerate(v.outliers_flagged.items()):
            at = 1 + i % (CURVES - 1)
            p.axes.plot(
                v.alphas, _positive(flagged), color=SERIES[at], linestyle=DASHES[at], linewidth=1.2, label=_short(name)
            )
        p.axes.axvline(report.alpha, color=MUTED, linewidth=0.8, linestyle=":")
        p.axes.set(xscale="log", yscale="log", xlim=(least, 1), ylim=(least, 1.1))
        p.axes.set(xlabel="alpha", ylabel="share flagged")
        _percent(p, both=True)
        p.axes.legend(loc="lower right", ncols=1 + (len(v.outliers_flagged) > 5))
    return p.svg


def reliability(report: Report, picture_name: str) -> str:
    """Reliability diagram of the classifier."""
    assert report.classifier is not None
    return _diagram(report.classifier.reliability, picture_name, "probability of the predicted class", diagonal=True)


def credibility(report: Report, picture_name: str) -> str:
    """Credibility diagram: accuracy by credibility."""
    return _diagram(report.credibility, picture_name, "credibility", diagonal=False)


def corruption(report: Report, kind: str, picture_name: str) -> str:
    """Share flagged and accuracy as inliers get worse in one way."""
    found = [x for x in report.corruptions.levels if x.kind == kind]
    severities = [x.severity for x in found]
    with picture(picture_name, f"inliers flagged by severity of {kind}", lines_below=3) as p:
        p.axes.fill_between(
            severities, [x.flagged.low for x in found], [x.flagged.high for x in found], color=SERIES[0], alpha=0.2
        )
        p.axes.plot(severities, [x.flagged.value for x in found], "o-", color=SERIES[0], markersize=4, label="flagged")
        lines = {"accuracy": [x.accuracy for x in found], "of those accepted": [x.accuracy_of_accepted for x in found]}
        for i, (label, values) in enumerate(lines.items(), start=1):
            known = [(s, v) for s, v in zip(severities, values, strict=True) if v is not None]
            if known:
                p.axes.plot(*zip(*known, strict=True), color=SERIES[i], linestyle=DASHES[i], marker=".", label=label)
        p.axes.set(ylim=(0, 1.02), xlabel=f"severity of {kind}", xticks=severities)
        p.axes.set_xticklabels([f"{s}\n{x.level:g}" for s, x in zip(severities, found, strict=True)])
        p.axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        p.axes.legend(loc="center left")
    return p.svg


def _diagram(bins: Sequence[Bin], picture_name: str, what: str, *, diagonal: bool) -> str:
    with picture(picture_name, f"accuracy by {what}") as p:
        filled = [(b.mean, b.accuracy) for b in bins if b.mean is not None and b.accuracy is not None]
        total = sum(b.rows for b in bins)
        edges = [bins[0].low, *(b.high for b in bins)]
        p.axes.stairs([b.accuracy or 0.0 for b in bins], edges, fill=True, color=SERIES[0], alpha=0.3)
        p.axes.plot(*zip(*filled, strict=True), "o", color=SERIES[0], label="accuracy")
        p.axes.stairs([b.rows / total for b in bins], edges, color=SERIES[1], linewidth=1.2, label="share of rows")
        if diagonal:
            p.axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="perfectly calibrated")
        p.axes.set(xlim=(0, 1), ylim=(0, 1.05), xlabel=what)
        p.axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        p.axes.legend(loc="best" if diagonal else "center right")
    return p.svg


def _drawn(report: Report) -> list[ScoreReport]:
    others = {k: s for k, s in report.scores.items() if k != OWN}
    ranked = sorted(others, key=lambda k: -others[k].mean_auroc)[: CURVES - 1]
    if ALWAYS in others and ALWAYS not in ranked:
        ranked[-1] = ALWAYS
    return [report.scores[OWN], *(others[k] for k in ranked)]


class _LogPercent(LogFormatter):
    """Percent at the ticks that Matplotlib labels, which on a short axis are more than the powers of ten."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{100 * x:g}%" if super().__call__(x, pos) else ""


def _percent(p: Picture, *, both: bool = False) -> None:
    p.axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    for axis in (p.axes.xaxis, p.axes.yaxis) if both else (p.axes.xaxis,):
        axis.set_major_formatter(_LogPercent())
        axis.set_minor_formatter(_LogPercent())


def _positive(shares: Sequence[float]) -> list[float]:
    """A logarithmic axis has no place for zero."""
    return [s or float("nan") for s in shares]


def _short(name: str) -> str:
    # A leading underscore would hide the entry from Matplotlib's legend.
    name = name if len(name) <= 34 else f"{name[:33]}…"
    return f" {name}" if name.startswith("_") else name
