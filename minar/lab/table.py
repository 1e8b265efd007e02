"""A table as text: results of a lesson or a benchmark, one row per thing measured."""


def table(rows: list[dict]) -> str:
    """Rows with equal keys, as aligned columns; floats with two decimals, None as a dash, numbers to the right."""
    if not rows:
        return "(no rows)"
    cells = [[str(key) for key in rows[0]]] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [not isinstance(value, str) for value in rows[0].values()]
    lines = [_line(line, widths, right) for line in cells]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _line(cells: list[str], widths: list[int], right: list[bool]) -> str:
    pairs = zip(cells, widths, right, strict=True)
    return "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in pairs).rstrip()


def _text(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}" if 0.1 <= abs(value) < 1e5 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
