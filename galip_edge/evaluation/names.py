"""Names of the metrics, and their direction."""

from __future__ import annotations

# Prefixes of the names of metrics.
_LOWER = ("fid_", "kid_", "fd_", "kd_", "cmmd", "clip_fd", "mixed", "two_sample_accuracy")
_HIGHER = (
    "clip_score", "r_precision", "clip_precision", "clip_recall", "clip_density", "clip_coverage",
    "precision_", "midpoint_precision_", "recall_", "density_", "coverage_", "diversity_",
)  # fmt: skip


def lower_is_better(metric: str) -> bool:
    """True if lower values of `metric` are better.

    Raises ValueError for an unknown metric.
    """
    if metric.startswith(_LOWER):
        return True
    if metric.startswith(_HIGHER):
        return False
    raise ValueError(
        f"{metric!r} is not a metric of evaluate, such as cmmd, clip_score, "
        "clip_precision or fid_torchvision"
    )
