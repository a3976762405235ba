"""What people look at.

tables     scores and differences as text and CSV
figures    FROC curves, strata, scores, and key slices with boxes
gallery    which key slices are worth looking at, with their neighbours
page       one HTML file of all these, from the template page.html
"""

from .page import write_report

__all__ = ["write_report"]
