"""How the demo model that ships in ``specs/demo/`` is made, from public drawings to measured weights.

``python -m recipes.demo_model`` runs every stage in order; see ``__main__`` for the stages.
"""
