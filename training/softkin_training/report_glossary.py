"""What every figure of a report means."""

from __future__ import annotations

GLOSSARY: dict[str, str] = {
    "outlier score": "How strange a row looks; higher = more outlying, for every score here.",
    "p-value": (
        "(1 + number of calibration rows that score at least as high) / (n + 1): how often a genuine inlier "
        "looks at least as strange."
    ),
    "alpha": "The false-alarm rate that is accepted: a row is flagged where p-value <= alpha.",
    "false alarms": (
        "Share of the inliers flagged at alpha. In brackets the exact 95 % interval of the true rate (Clopper"
        " & Pearson 1934), for this calibration set."
    ),
    "caught": (
        "Share of an outlier set flagged at alpha (power), with the same kind of interval. Empty where a "
        "score was not calibrated."
    ),
    "certified bound": (
        "With 95 % confidence over the draw of the calibration rows, the true false-alarm rate of this "
        "calibration set is not above it (Vovk 2012; a quantile of Beta(k, n + 1 - k))."
    ),
    "chance of so many": (
        "Chance of at least as many false alarms as were seen, if these inliers and the calibration rows are "
        "exchangeable; it allows for the luck of both samples (beta-binomial). Below 0.01: these inliers are "
        "not like the calibration rows."
    ),
    "AUROC": "Chance that an outlier scores higher than an inlier, ties counting half. 0.5 is guessing.",
    "AUPR_OUT": (
        "Average precision with outliers as positives. It depends on how many outliers there are: do not "
        "compare between sets of different size."
    ),
    "AUPR_IN": "Average precision with inliers as positives.",
    "FPR95": (
        "Outliers positive: share of inliers wrongly flagged by the threshold that catches 95 % of the "
        "outliers. OpenOOD and pytorch-ood mean this one."
    ),
    "FPR95_ID": (
        "Inliers positive: share of outliers wrongly accepted by the threshold that keeps 95 % of the "
        "inliers. The papers on ODIN, energy and k-th neighbour mean this one."
    ),
    "KS distance": (
        "Kolmogorov-Smirnov: largest gap between the share of inliers with p-value <= t and t. Its test "
        "compares inlier scores with calibration scores (two samples)."
    ),
    "accuracy": "Share of inliers whose class is predicted right.",
    "ECE": (
        "Expected calibration error: mean gap between accuracy and probability of the predicted class, over "
        "15 equally wide bins of that probability, weighted by rows (Guo et al. 2017)."
    ),
    "adaptive ECE": "The same over 15 bins of equally many rows (Nguyen & O'Connor 2015).",
    "Brier score": (
        "Mean squared distance between the predicted probabilities and the true class, summed over classes "
        "(Brier 1950): 0 is perfect, 2 the worst."
    ),
    "NLL": "Mean negative natural logarithm of the probability given to the true class.",
    "credibility": (
        "Largest class p-value of a row (Papernot & McDaniel 2018). Where credibility is worth something, "
        "accuracy rises with it."
    ),
    "mean": "Plain mean over outlier sets, each counting the same.",
}
