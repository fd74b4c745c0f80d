"""The whole model: a frozen CLIP, the generator and the discriminator around it."""

from __future__ import annotations

from torch import Tensor, nn

from galip_edge.models.clip import CLIPImageEncoder, CLIPTextEncoder, build_clip
from galip_edge.models.config import ModelConfig
from galip_edge.models.discriminator import ConvolutionalDiscriminator, Discriminator
from galip_edge.models.generator import Generator


class GALIP(nn.Module):
    """Generator, discriminator, and the CLIP that both share.

    `clip` owns the frozen weights; `generator`, `text_encoder` and `image_encoder` refer to them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = build_clip(config.clip)
        self.generator = Generator(config, self.clip.visual)
        discriminator = Discriminator if config.tap_blocks else ConvolutionalDiscriminator
        self.discriminator = discriminator(config)
        self.text_encoder = CLIPTextEncoder(self.clip)
        self.image_encoder = CLIPImageEncoder(
            self.clip.visual, config.clip, config.tap_blocks, config.clip_input
        )

    def forward(self, noise: Tensor, tokens: Tensor) -> Tensor:
        """noise (B,noise_dim), prompt tokens (B,77) -> images (B,3,H,W), to be clamped."""
        image: Tensor = self.generator(noise, self.text_encoder(tokens))
        return image
