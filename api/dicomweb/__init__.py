"""QIDO-RS (PS3.18 chapter 10.6).

`routes` (over HTTP), `request` (a query, understood), `answer` (the DICOM JSON Model, PS3.18 annex F).
"""
