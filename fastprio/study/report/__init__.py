"""``fastprio study report``: what the runs of a study say, as tables and pictures.

results: the runs by column, row and seed. measures: arithmetic. speed, errors, selection, claims: what is reported, as
plain values. tables, setting, sections, findings: their form in
words. pictures: matplotlib. document: all of it, in a folder.
"""

from fastprio.study.report.document import write as write
