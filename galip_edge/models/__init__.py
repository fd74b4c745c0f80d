"""GALIP's networks, as the authors published them, for any dimensions."""

from galip_edge.models.config import PRESETS, CLIPConfig, ModelConfig
from galip_edge.models.discriminator import ConvolutionalDiscriminator, Discriminator
from galip_edge.models.galip import GALIP
from galip_edge.models.generator import Generator

__all__ = [
    "GALIP",
    "PRESETS",
    "CLIPConfig",
    "ConvolutionalDiscriminator",
    "Discriminator",
    "Generator",
    "ModelConfig",
]
