"""A release criterion in the forms that continuous integration reads: JUnit's XML, SARIF 2.1.0 and a Markdown summary.

Names of runs, models and sets are data: escaped in each of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import midward
from midward._hints import printable
from midward.reports import render
from midward.reports.blocks import reading, text
from midward.reports.builders.gate import blocks, more, place, sentence
from midward.runs.run import SUMMARY

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def junit(summary: Mapping[str, Any], *, unclear_fails: bool) -> str:
    """JUnit's XML: a test for each criterion, failed where it is broken, and skipped where it is unclear and that is no
    failure.

    Args:
        summary: what `reports.gate.decide` gives.
    """
    outcomes = {"held": "system-out", "broken": "failure", "unclear": "failure" if unclear_fails else "skipped"}
    made = [outcomes[each["verdict"]] for each in summary["criteria"]]
    counts = {"tests": len(made), "failures": made.count("failure"), "skipped": made.count("skipped"), "errors": 0}
    about = {"name": "midward gate", **{name: str(count) for name, count in counts.items()}}
    suites = ElementTree.Element("testsuites", about)
    suite = ElementTree.SubElement(suites, "testsuite", about)
    for criterion, outcome in zip(summary["criteria"], made, strict=True):
        test = ElementTree.SubElement(
            suite, "testcase", name=criterion["criterion"], classname="midward.gate", time="0"
        )
        told = ElementTree.SubElement(test, outcome)
        if outcome != "system-out":
            told.set("message", printable(sentence(criterion), ""))
        if outcome == "failure":
            told.set("type", criterion["verdict"])
        told.text = printable("\n".join(_lines(criterion)))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def sarif(summary: Mapping[str, Any]) -> str:
    """SARIF 2.1.0: a rule for each criterion, and a result for each that is broken.

    Args:
        summary: what `reports.gate.decide` gives.
    """
    rules, results = [], []
    for index, criterion in enumerate(summary["criteria"]):
        side = {True: "max/", False: "min/", None: ""}[criterion.get("most")]
        name = side + printable(criterion["name"], "")
        about = {"text": _message(criterion["criterion"])}
        rules.append({"id": name, "shortDescription": about, "defaultConfiguration": {"level": "error"}})
        if criterion["verdict"] != "broken":
            continue
        folders = [summary["runs"][cell["run"]]["folder"] for cell in criterion["cells"] if cell["verdict"] == "broken"]
        files = [quote(Path(folder, SUMMARY).as_posix(), errors="replace") for folder in dict.fromkeys(folders)]
        results.append(
            {
                "ruleId": name,
                "ruleIndex": index,
                "level": "error",
                "message": {"text": _message("\n".join([sentence(criterion), *_lines(criterion)]))},
                "locations": [{"physicalLocation": {"artifactLocation": {"uri": file}}} for file in files[:1]],
                "relatedLocations": [{"physicalLocation": {"artifactLocation": {"uri": file}}} for file in files[1:]],
                "partialFingerprints": {"criterion/v1": hashlib.sha256(name.encode()).hexdigest()},
            }
        )
    driver = {"name": "midward gate", "semanticVersion": midward.__version__, "rules": rules}
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return json.dumps(log, indent=1) + "\n"


def markdown(summary: Mapping[str, Any]) -> str:
    """Markdown: the verdict and the tables of the terminal.

    Args:
        summary: what `reports.gate.decide` gives.
    """
    return f"## midward gate: {summary['verdict']}\n\n{render.markdown(blocks(Path(), {}, summary))}"


def _lines(criterion: Mapping[str, Any]) -> Iterator[str]:
    """A line for each cell."""
    for cell in criterion["cells"]:
        told = f"{cell['verdict']}: {place(cell)}: {text(reading(cell))}"
        yield f"{told}; {more(cell)}" if more(cell) else told


def _message(words: str) -> str:
    """A text of SARIF, where braces are places of arguments, and [words](target) is a link."""
    words = printable(words).replace("{", "{{").replace("}", "}}").replace("\\", "\\\\")
    return re.sub(r"\[(?=[^\]]*\]\()", r"\\[", words)
