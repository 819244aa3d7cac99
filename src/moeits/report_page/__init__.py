"""What stands on the report page, and how it is drawn.

artefacts.py    a run's files, read            (JSON and evidence, by type; a broken one is a sentence)
removal.py      elimination orders             what the slider cuts
decision.py     the first screen               lost.py, saved.py, doubts.py: its numbers, and what they cannot tell
rows.py         evaluated models, the unpruned one first, each before its control
questions.py    what they were asked           numbers of different questions are never side by side
differences.py  two of them on the same items  by `moeits compare`
accuracy.py     tables                         measures.py: what a plot shows of them
figures.py      plots, by matplotlib           drawing.py: inline SVG that takes its colours from the page
*_sections.py   titles, sentences and blocks   side_by_side.py: of several runs
page.py         all of it in one HTML file     page.html.j2, page.css, page.js
markdown.py     the tables for a paper or a model card
"""

FORMATS = ("html", "md")
