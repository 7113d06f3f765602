"""`midward report`: one page from any set of run folders. It reads files and computes no result.

`find` tells runs by what their files hold; a module a kind of run turns them into tables, charts and sentences
(`parts`, `chart`); `page` puts them together. Texts of prompts and models go through `Texts`, which redacts them.
"""

from midward.reports.report.page import write

__all__ = ["write"]
