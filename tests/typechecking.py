"""The run-time type checker of the tests: beartype, taking an int where a float is expected.

That is what type checkers and users take for granted (PEP 484, the numeric tower).
"""

from beartype import BeartypeConf, beartype

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))
