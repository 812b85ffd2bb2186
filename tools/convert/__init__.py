"""Annotations of other programs, turned into `folder`'s layout."""
