"""JSON and YAML from files, parsed only if what they make fits in memory.

Only this package calls the parsers; the headers of safetensors files have a parser of their own.

A parser builds whatever the text asks for: nine megabytes of ``[],[],…`` become 250 MB of lists,
and one kilobyte of YAML aliases takes a minute. So JSON is measured before it is parsed, and YAML
is read without tags and dates, with aliases only where people use them, and only as much of it as
recipes and model cards have. The caller limits the size of the file that it reads.
"""

from paramdelta.documents.json import DocumentError, parse_json, to_json

__all__ = ["DocumentError", "parse_json", "to_json"]
