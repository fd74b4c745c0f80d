"""Names of the figures, and which of two values is the better one."""

from __future__ import annotations

# A figure's name up to its protocol, and whether lower values are better.
_LOWER = ("fid_", "kid_", "fd_", "kd_", "cmmd", "clip_fd", "mixed", "two_sample_accuracy")
_HIGHER = (
    "clip_score", "r_precision", "clip_precision", "clip_recall", "clip_density", "clip_coverage",
    "precision_", "midpoint_precision_", "recall_", "density_", "coverage_", "diversity_",
)  # fmt: skip


def lower_is_better(metric: str) -> bool:
    """Whether the better of two models has the lower value of `metric`.

    Raises ValueError if no figure has that name.
    """
    if metric.startswith(_LOWER):
        return True
    if metric.startswith(_HIGHER):
        return False
    raise ValueError(
        f"{metric!r} is not the name of a figure of evaluate, such as cmmd, clip_score, "
        "clip_precision or fid_torchvision"
    )
