"""What docs/papers.md says of the audit, from the audit itself: python scripts/papers_page.py.

The page holds marks such as `<!-- audit: TITLE -->`; what stands from there to the next
`<!-- end -->` is the part of the audit with that title, without pictures and the widest tables.
"""

from __future__ import annotations

import re
from pathlib import Path

from chestct.report import Section, as_markdown
from chestct.studies.audit import audit_papers, report_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "papers.md"
MARKED = re.compile(r"(<!-- audit: (.*?) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def with_audit(page: str) -> str:
    """The page with every marked part as the audit has it now; unknown titles are a KeyError."""
    parts: dict[str, list[Section]] = {}
    for section in report_of(audit_papers(), is_whole=False).sections:
        if section.level < 3:
            title = section.title
            parts[title] = []
        parts[title].append(section)

    def written(found: re.Match[str]) -> str:
        """A part under the page's own heading."""
        _, _, text = as_markdown(*parts[found[2]]).partition("\n\n")
        return f"{found[1]}\n{text}\n{found[3]}"

    return MARKED.sub(written, page)


if __name__ == "__main__":
    PAGE.write_text(with_audit(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
