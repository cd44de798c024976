#!/usr/bin/env python3
"""Writes tests/vectors/cases.xlsx, a workbook of two cases with a blank row between. Standard library only."""

import zipfile

ROWS = {
    1: ["id", "text", "label", "level"],
    2: ["a", "小区停水三天了", "problem", 1],
    4: ["b", "谢谢大家", "none", 0],
}
TYPES = "application/vnd.openxmlformats-officedocument.spreadsheetml"
RELS = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
PACKAGE = "http://schemas.openxmlformats.org/package/2006"
HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'


def cell(row, column, value):
    name = f"{'ABCD'[column]}{row}"
    if isinstance(value, str):
        return f'<c r="{name}" t="inlineStr"><is><t>{value}</t></is></c>'
    return f'<c r="{name}"><v>{value}</v></c>'


rows = "".join(
    f'<row r="{row}">{"".join(cell(row, column, value) for column, value in enumerate(cells))}</row>'
    for row, cells in ROWS.items()
)
FILES = {
    "[Content_Types].xml": f'<Types xmlns="{PACKAGE}/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    f'<Override PartName="/xl/workbook.xml" ContentType="{TYPES}.sheet.main+xml"/>'
    f'<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{TYPES}.worksheet+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{RELS}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
    "xl/workbook.xml": f'<workbook xmlns="{MAIN}" xmlns:r="{RELS}">'
    '<sheets><sheet name="cases" sheetId="1" r:id="rId1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{PACKAGE}/relationships">'
    f'<Relationship Id="rId1" Type="{RELS}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
    "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{MAIN}"><sheetData>{rows}</sheetData></worksheet>',
}
with zipfile.ZipFile("tests/vectors/cases.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
    for name, text in FILES.items():
        # A fixed date: the same file on every run.
        book.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), HEAD + text)
