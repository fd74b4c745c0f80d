"""Names of the authors' published checkpoints, translated to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FUSION = r"fuse([12])\.affine([01])\.fc_(gamma|beta)\.linear([12])\.(\w+)"

# (part, original name, our name). The first rule that matches the whole name wins.
_RULES: tuple[tuple[str, str, str], ...] = (
    ("netG", r"fc_code\.(\w+)", r"generator.noise_projection.\1"),
    ("netG", r"mapping\.FBlocks\.(\d+)\.(conv[12]\.\w+)", r"generator.bridge.blocks.\1.\2"),
    ("netG", rf"mapping\.FBlocks\.(\d+)\.({_FUSION})", r"generator.bridge.blocks.\1.\2"),
    ("netG", r"mapping\.conv_fuse\.(\w+)", r"generator.bridge.to_feature.\1"),
    ("netG", r"mapping\.fc_prompt\.(\w+)", r"generator.prompt_predictor.\1"),
    ("netG", r"mapping\.conv\.(\w+)", r"generator.visual_projection.\1"),
    ("netG", r"mapping\.CLIP_ViT\.(.+)", r"clip.visual.\1"),
    ("netG", r"GBlocks\.(\d+)\.c([12])\.(\w+)", r"generator.upsampling.\1.conv\2.\3"),
    ("netG", r"GBlocks\.(\d+)\.c_sc\.(\w+)", r"generator.upsampling.\1.shortcut.\2"),
    ("netG", rf"GBlocks\.(\d+)\.({_FUSION})", r"generator.upsampling.\1.\2"),
    ("netG", r"to_rgb\.1\.(\w+)", r"generator.to_rgb.\1"),
    ("netD", r"DBlocks\.(\d+)\.(gamma|beta)", r"discriminator.taps.\1.\2"),
    ("netD", r"DBlocks\.(\d+)\.conv_r\.0\.(\w+)", r"discriminator.taps.\1.residual.conv1.\2"),
    ("netD", r"DBlocks\.(\d+)\.conv_r\.2\.(\w+)", r"discriminator.taps.\1.residual.conv2.\2"),
    # The authors' first two blocks carry a shortcut that their code never calls.
    ("netD", r"DBlocks\.\d+\.conv_s\.\w+", ""),
    ("netD", r"main\.gamma", r"discriminator.reduction.gamma"),
    ("netD", r"main\.conv_r\.0\.(\w+)", r"discriminator.reduction.residual.conv1.\1"),
    ("netD", r"main\.conv_r\.2\.(\w+)", r"discriminator.reduction.residual.conv2.\1"),
    ("netD", r"main\.conv_s\.(\w+)", r"discriminator.reduction.shortcut.\1"),
    ("netC", r"joint_conv\.0\.(\w+)", r"discriminator.joint.\1"),
    ("netC", r"joint_conv\.2\.(\w+)", r"discriminator.to_score.\1"),
)


def _translate_fusion(name: str) -> str:
    """fuse1.affine0.fc_gamma.linear2.weight -> fusion1.affine0.gamma.2.weight."""

    def replace(match: re.Match[str]) -> str:
        fuse, affine, kind, linear, tensor = match.groups()
        return f"fusion{fuse}.affine{affine}.{kind}.{2 * (int(linear) - 1)}.{tensor}"

    return re.sub(_FUSION, replace, name)


def translate_name(part: str, name: str) -> str | None:
    """Our name for a tensor of the original's `part` (netG, netD, netC).

    Returns an empty string for a tensor that the original never uses, None for an unknown one.
    """
    for rule_part, pattern, ours in _RULES:
        if rule_part == part and (match := re.fullmatch(pattern, name)):
            return _translate_fusion(match.expand(ours))
    return None


def shortened(names: Iterable[str], limit: int = 8) -> str:
    """The first names, comma-separated, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
