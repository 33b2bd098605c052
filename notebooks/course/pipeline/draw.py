"""The method's way as a picture, a file a lesson, its step marked; `python draw.py` writes them."""

from __future__ import annotations

from pathlib import Path

STEPS = (  # of the lessons, in order: two lines each
    ("noise to", "picture"), ("copy or", "not?"), ("value", "neurons"), ("score:", "flagged?"),
    ("candidate", "neurons"), ("refined", "neurons"), ("switched", "off"), ("gone, or", "hidden?"),
    ("who finds", "them?"),
)  # fmt: skip
PARTS = (("look at pictures", 0, 2), ("look inside", 2, 3), ("NeMo: detect, select, refine", 3, 6),
         ("judge", 6, 9))  # fmt: skip
WIDTH, BOX, TOP, HEIGHT = 96, 80, 26, 46  # of a step and its box, pixels


def svg(lesson: int) -> str:
    """The pipeline with the step of a lesson marked, as SVG text."""
    whole = len(STEPS) * WIDTH
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} 84" width="{whole}" '
        'height="84" font-family="sans-serif" font-size="12" text-anchor="middle">',
        f'<rect width="{whole}" height="84" fill="#ffffff"/>',
    ]
    for name, first, last in PARTS:
        left, right = first * WIDTH + 8, last * WIDTH - 8
        lines.append(f'<text x="{(left + right) / 2:g}" y="13" fill="#555555">{name}</text>')
        lines.append(f'<path d="M{left} 19H{right}" stroke="#999999"/>')
    for place, words in enumerate(STEPS):
        here = place + 1 == lesson
        left, middle = place * WIDTH + 8, place * WIDTH + 8 + BOX / 2
        fill, ink = ("#D55E00", "#ffffff") if here else ("#f2f2f2", "#222222")
        lines.append(
            f'<rect x="{left}" y="{TOP}" width="{BOX}" height="{HEIGHT}" rx="6" fill="{fill}" '
            'stroke="#666666"/>'
        )
        for row, text in enumerate(words):
            y = TOP + 20 + 16 * row
            lines.append(f'<text x="{middle:g}" y="{y}" fill="{ink}">{text}</text>')
        lines.append(
            f'<text x="{middle:g}" y="83" font-size="10" fill="#555555">lesson {place + 1}</text>'
        )
        if place:
            lines.append(f'<path d="M{left - 15} {TOP + HEIGHT // 2}h11" stroke="#444444"/>')
            lines.append(
                f'<path d="M{left - 7} {TOP + HEIGHT // 2 - 4}l6 4l-6 4z" fill="#444444"/>'
            )
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    for number in range(1, len(STEPS) + 1):
        Path(__file__).with_name(f"{number}.svg").write_text(svg(number), encoding="utf-8")
