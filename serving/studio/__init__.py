"""The studio: a page that shows, runs and edits the recipes of a server.

page    The page's files, at / and /studio/
static/ HTML, CSS and ES modules, served as they are
"""
