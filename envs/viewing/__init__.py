"""Looking at trajectories: a page for a browser, and text for a terminal.

Everything shown may have been written by a model or a tool and is hostile: the page sets text and never markup, under a
content security policy that admits one script by its hash; the terminal gets escapes for what could drive it.
"""
