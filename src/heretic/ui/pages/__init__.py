"""Draws what `heretic.ui.views` holds, with NiceGUI (extra `ui`).

Texts go into elements as text. Nothing here makes HTML or Markdown of them.
"""
