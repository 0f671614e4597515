"""The page on which people look at registered pairs, judge them, and place landmarks.

``review.py`` starts it. ``review_set`` reads what is to be reviewed, ``verdicts`` keeps the
judgements, ``rendering`` draws tiles of the images, ``snapping`` and ``fitting`` serve the
landmarks, ``landmark_store`` saves them, ``exports`` writes what leaves the page, ``security``
guards the server, ``server`` composes them. The page itself is in ``static/``.
"""
