"""Office files: Word, PowerPoint, Excel, OpenDocument text and RTF; the libraries are in the extra `office`.

Macros are not run, links and embedded files are not followed.
"""
