"""Drawn scenes of birds with captions and known attributes: unlimited, without a download."""

from galip_edge.aviary.data.ahead import draw_ahead
from galip_edge.aviary.data.attributes import ATTRIBUTES, Variety
from galip_edge.aviary.data.captions import Caption, write_caption
from galip_edge.aviary.data.chance import NOISE_DIM
from galip_edge.aviary.data.config import AviaryConfig
from galip_edge.aviary.data.drawing import Layout, draw, layout_of, to_svg
from galip_edge.aviary.data.scene import Scene, imagined_scene, random_scene, similar_scene
from galip_edge.aviary.data.source import AviarySource

__all__ = [
    "ATTRIBUTES",
    "NOISE_DIM",
    "AviaryConfig",
    "AviarySource",
    "Caption",
    "Layout",
    "Scene",
    "Variety",
    "draw",
    "draw_ahead",
    "imagined_scene",
    "layout_of",
    "random_scene",
    "similar_scene",
    "to_svg",
    "write_caption",
]
