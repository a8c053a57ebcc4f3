"""A page on which a person sees and tries a model: what it shows, as plain functions, and the page itself.

Only `page` imports Gradio. Start with drawing.py, then page.py.
"""
