"""What stands on the report page, and how it is drawn.

artefacts.py    a run's files, read            (JSON and evidence; nothing else is ever read)
removal.py      elimination orders             what the slider cuts
accuracy.py     results as rows of a table
figures.py      plots, by matplotlib           inline SVG that takes its colours from the page
page.py         all of it in one HTML file     page.html.j2, page.css, page.js
markdown.py     the tables for a paper or a model card
"""
