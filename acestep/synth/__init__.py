"""A small synthesiser that makes the music which the built-in model learned from; no torch in it.

`random_piece` draws what is played, `describe` says it as a user would, `render` plays it. All of it is a function of a
seed.
"""

from acestep.synth.captions import describe
from acestep.synth.piece import Piece, random_piece
from acestep.synth.renderer import render

__all__ = ["Piece", "describe", "random_piece", "render"]
