"""Tables and pictures of a run. Functions compute data or draw them, not both; none needs torch.

`front`: the trials and their front. `geometry`: cosines, norms and separation of good and bad
residuals, layer by layer. `projection`: residuals as points in the plane, with pictures and an
animation. `drawing`: figures and styles.
"""
