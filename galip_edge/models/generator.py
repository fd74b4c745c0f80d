"""The generator: noise and a sentence embedding to an image in one step."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from galip_edge.models.blocks import (
    NEGATIVE_SLOPE,
    BridgeBlock,
    UpsamplingBlock,
    conv3x3,
    leaky_relu,
)
from galip_edge.models.clip import PromptedViT
from galip_edge.models.config import ModelConfig

# The condition's choices have about the variance of noise, and are close to 0 and their maximum.
_CHOICE_SCALE, _SHARPNESS = 3.0, 3.0


class MappingNetwork(nn.Module):
    """Chooses values of categorical variables by noise and sentence; not in the paper.

    The layers of a generator need very many images to find out which words decide between
    discrete alternatives, and which noise decides them if no word does. Here three hidden layers
    choose first, for all other layers, like the mapping network of StyleGAN (Karras et al. 2019,
    https://arxiv.org/abs/1812.04948). Unlike there, the result is categorical: between two values
    an image would show a mixture.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.categories = config.categories
        width = config.mapping_width
        widths = (config.noise_dim + config.clip.embedding_dim, width, width, width)
        hidden: list[nn.Module] = []
        for before, after in pairwise(widths):
            hidden += [nn.Linear(before, after), nn.LeakyReLU(NEGATIVE_SLOPE)]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, sum(self.categories)))

    def logits(self, noise: Tensor, sentence: Tensor) -> tuple[Tensor, ...]:
        """noise (B,Z), sentence (B,E) -> scores (B,n) of the n values, for each variable."""
        scores: Tensor = self.layers(torch.cat([noise, sentence], dim=1))
        ends = accumulate(self.categories)
        return tuple(scores[:, end - n : end] for n, end in zip(self.categories, ends, strict=True))

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """noise (B,Z), sentence (B,E) -> choices (B,sum(categories)), close to 0 or 3."""
        scores = self.logits(noise, sentence)
        chosen = [torch.softmax(_SHARPNESS * each, dim=1) for each in scores]
        return _CHOICE_SCALE * torch.cat(chosen, dim=1)

    def given(self, values: Tensor) -> Tensor:
        """The result for values (B,variables), by index: (B,sum(categories)) of 0 and 3."""
        columns = zip(values.unbind(1), self.categories, strict=True)
        chosen = [nn.functional.one_hot(value, count) for value, count in columns]
        return _CHOICE_SCALE * torch.cat(chosen, dim=1).float()


class BridgePredictor(nn.Module):
    """Predicts the bridge feature, an input that the frozen ViT can read (paper, section 3.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            BridgeBlock(config.condition_dim, config.bridge_channels, config.bridge_hidden)
            for _ in range(config.bridge_blocks)
        )
        self.to_feature = nn.Conv2d(
            config.bridge_channels, config.clip.vision_width, kernel_size=5, padding=2
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B,bridge_channels,grid,grid), condition (B,D) -> (B,vision_width,grid,grid)."""
        for block in self.blocks:
            x = block(x, condition)
        feature: Tensor = self.to_feature(x)
        return feature


class Generator(nn.Module):
    """The CLIP-empowered generator (paper, section 3.3 and figure 3).

    `visual` is CLIP's frozen image transformer, which belongs to the CLIP model.
    """

    def __init__(self, config: ModelConfig, visual: nn.Module) -> None:
        super().__init__()
        self.config = config
        grid, condition, width = config.clip.grid, config.condition_dim, config.clip.vision_width
        channels = config.block_channels
        self.mapping = MappingNetwork(config) if config.categories else None
        self.noise_projection = nn.Linear(config.noise_dim, config.bridge_channels * grid * grid)
        self.bridge = BridgePredictor(config)
        if config.prompt_blocks:
            self.prompt_predictor = nn.Linear(condition, len(config.prompt_blocks) * width)
        self.vit = PromptedViT(visual, config.prompt_blocks)
        self.visual_projection = nn.Conv2d(width, channels[0], kernel_size=5, padding=2)
        self.upsampling = nn.ModuleList(
            UpsamplingBlock(condition, c_in, c_out, size)
            for c_in, c_out, size in zip(channels, channels[1:], config.block_sizes)
        )
        self.to_rgb = conv3x3(channels[-1], 3)

    def visual_features(self, noise: Tensor, condition: Tensor, concept: bool = True) -> Tensor:
        """Features for the first upsampling block.

        Args:
            noise: (B,noise_dim).
            condition: (B,D).
            concept: add the visual concept; False leaves out the ViT.

        Returns:
            (B,block_channels[0],grid,grid).
        """
        grid = self.config.clip.grid
        start = self.noise_projection(noise).reshape(noise.shape[0], -1, grid, grid)
        feature = self.bridge(start, condition)
        if concept and self.config.visual_concept_scale:
            visual_concept = self.vit(feature, self.prompt_tokens(condition))
            feature = feature + self.config.visual_concept_scale * visual_concept
        features: Tensor = self.visual_projection(feature)
        return features

    def prompt_tokens(self, condition: Tensor) -> Tensor:
        """condition (B,D) -> (B,len(prompt_blocks),vision_width)."""
        shape = condition.shape[0], len(self.config.prompt_blocks), self.config.clip.vision_width
        if not self.config.prompt_blocks:
            return condition.new_zeros(shape)
        tokens: Tensor = self.prompt_predictor(condition).reshape(shape)
        return tokens

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Generate images.

        Args:
            noise: (B,noise_dim), drawn from N(0,1).
            sentence: (B,embedding_dim) sentence embedding, not normalised.

        Returns:
            (B,3,H,W); [-1,1] is black to white. There is no tanh: callers clamp.
        """
        return self.synthesize(noise, self.condition(noise, sentence))

    def condition(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """The condition c of all layers: noise (B,Z), sentence (B,E) -> (B,D)."""
        known = sentence if self.mapping is None else self.mapping(noise, sentence)
        return torch.cat([noise, known.to(noise.dtype)], dim=1)

    def synthesize(self, noise: Tensor, condition: Tensor) -> Tensor:
        """noise (B,noise_dim), condition (B,D) -> images (B,3,H,W)."""
        return self.render(self.visual_features(noise, condition), condition)

    def render(self, features: Tensor, condition: Tensor) -> Tensor:
        """The upsampling blocks: features (B,block_channels[0],grid,grid) -> images (B,3,H,W)."""
        for block in self.upsampling:
            features = block(features, condition)
        image: Tensor = self.to_rgb(leaky_relu(features))
        return image
