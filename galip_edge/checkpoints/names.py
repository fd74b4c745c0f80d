"""Translation between tensor names of the authors' published checkpoints and ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FUSION = r"fuse([12])\.affine([01])\.fc_(gamma|beta)\.linear([12])\.(\w+)"

# (network, original name, our name). The first rule that matches the whole name applies.
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
    # The authors' first two blocks have a shortcut that their code never calls.
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


def translate_name(network: str, name: str) -> str | None:
    """Our name for a tensor of the original's `network` (netG, netD, netC).

    Returns an empty string for a tensor that the original never uses, None for an unknown name.
    """
    for rule_network, pattern, ours in _RULES:
        if rule_network == network and (match := re.fullmatch(pattern, name)):
            return _translate_fusion(match.expand(ours))
    return None


def shortened(names: Iterable[str], limit: int = 8) -> str:
    """The first names, comma-separated, and the number of further ones."""
    names = list(names)
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def indices(names: Iterable[str], before: str) -> int:
    """Number of layers whose tensors are named `before`, a number, and a dot."""
    pattern = re.compile(re.escape(before) + r"(\d{1,9})\.")
    found = {int(match[1]) for name in names if (match := pattern.match(name))}
    return len(found)


_OUR_FUSION = r"fusion([12])\.affine([01])\.(gamma|beta)\.([02])\.(\w+)"

# (our name, network, original name): the inverse of `_RULES`.
_EXPORT_RULES: tuple[tuple[str, str, str], ...] = (
    (r"generator\.noise_projection\.(\w+)", "netG", r"fc_code.\1"),
    (r"generator\.bridge\.blocks\.(\d+\..+)", "netG", r"mapping.FBlocks.\1"),
    (r"generator\.bridge\.to_feature\.(\w+)", "netG", r"mapping.conv_fuse.\1"),
    (r"generator\.prompt_predictor\.(\w+)", "netG", r"mapping.fc_prompt.\1"),
    (r"generator\.visual_projection\.(\w+)", "netG", r"mapping.conv.\1"),
    (r"clip\.visual\.(?!ln_post|proj)(.+)", "netG", r"mapping.CLIP_ViT.\1"),
    (r"generator\.upsampling\.(\d+)\.conv([12])\.(\w+)", "netG", r"GBlocks.\1.c\2.\3"),
    (r"generator\.upsampling\.(\d+)\.shortcut\.(\w+)", "netG", r"GBlocks.\1.c_sc.\2"),
    (r"generator\.upsampling\.(\d+\..+)", "netG", r"GBlocks.\1"),
    (r"generator\.to_rgb\.(\w+)", "netG", r"to_rgb.1.\1"),
    (r"discriminator\.taps\.(\d+)\.(gamma|beta)", "netD", r"DBlocks.\1.\2"),
    (r"discriminator\.taps\.(\d+)\.residual\.conv1\.(\w+)", "netD", r"DBlocks.\1.conv_r.0.\2"),
    (r"discriminator\.taps\.(\d+)\.residual\.conv2\.(\w+)", "netD", r"DBlocks.\1.conv_r.2.\2"),
    (r"discriminator\.reduction\.gamma", "netD", r"main.gamma"),
    (r"discriminator\.reduction\.residual\.conv1\.(\w+)", "netD", r"main.conv_r.0.\1"),
    (r"discriminator\.reduction\.residual\.conv2\.(\w+)", "netD", r"main.conv_r.2.\1"),
    (r"discriminator\.reduction\.shortcut\.(\w+)", "netD", r"main.conv_s.\1"),
    (r"discriminator\.joint\.(\w+)", "netC", r"joint_conv.0.\1"),
    (r"discriminator\.to_score\.(\w+)", "netC", r"joint_conv.2.\1"),
)


def published_name(name: str) -> tuple[str, str] | None:
    """The original's (network, name) for a tensor of ours; None for CLIP's other tensors."""

    def fusion(match: re.Match[str]) -> str:
        number, affine, kind, linear, tensor = match.groups()
        return f"fuse{number}.affine{affine}.fc_{kind}.linear{int(linear) // 2 + 1}.{tensor}"

    for pattern, network, original in _EXPORT_RULES:
        if match := re.fullmatch(pattern, name):
            return network, re.sub(_OUR_FUSION, fusion, match.expand(original))
    return None
