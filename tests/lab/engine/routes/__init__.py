"""
The REST API: which address does what, and how entities look as XML.
"""
