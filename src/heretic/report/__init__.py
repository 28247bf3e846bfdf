"""Tables and pictures of a run: data functions and drawing functions, apart; none needs torch.

`front`: trials and the front between them. `geometry`: where good and bad residuals lie, layer by
layer. `projection`: the same as points in the plane. `drawing`: figures and animations of points.
"""
