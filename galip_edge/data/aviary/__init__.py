"""The aviary: drawn scenes of birds with captions and known attributes, without end or download."""

from galip_edge.data.aviary.ahead import draw_ahead
from galip_edge.data.aviary.attributes import ATTRIBUTES, Variety
from galip_edge.data.aviary.captions import Caption, write_caption
from galip_edge.data.aviary.chance import NOISE_DIM
from galip_edge.data.aviary.drawing import Layout, draw, layout_of, to_svg
from galip_edge.data.aviary.scene import Scene, imagined_scene, random_scene, similar_scene
from galip_edge.data.aviary.source import AviarySource

__all__ = [
    "ATTRIBUTES",
    "NOISE_DIM",
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
