"""Gives what it is asked to the notes' server, and answers with all there are."""

import sys
from urllib.request import urlopen

with urlopen(sys.argv[1], data=sys.stdin.read().encode()) as answer:  # noqa: S310 - the definition says where
    print(answer.read().decode(), end="")
