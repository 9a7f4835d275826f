"""Colours of figures and of the page, on light and on dark ground.

The six colours of curves differ in lightness as well as in hue: they can be told apart with the common kinds of colour
blindness, and each has a contrast of at least 3 with the ground (WCAG 2.1, 1.4.11). A test computes both.
"""

LIGHT = {
    **{"c0": "#1f77d4", "c1": "#b53a00", "c2": "#12967a", "c3": "#4c2482", "c4": "#b78b00", "c5": "#94124f"},
    **{"grey": "#6b7580", "ink": "#1c2430", "muted": "#5a6472", "line": "#d9dee5", "grid": "#e6eaef"},
    **{"ground": "#ffffff", "page": "#f4f6f9", "good": "#0c7a3f", "bad": "#b3261e", "mark": "#ffe7a3"},
}
DARK = {
    **{"c0": "#62b0ff", "c1": "#ff8642", "c2": "#4fe0b0", "c3": "#9a78e8", "c4": "#f5dc5a", "c5": "#ffa6d0"},
    **{"grey": "#98a3b0", "ink": "#e6ebf2", "muted": "#a3aebb", "line": "#353e4b", "grid": "#2a323d"},
    **{"ground": "#161b22", "page": "#0d1117", "good": "#56d68b", "bad": "#ff8b82", "mark": "#5c4a00"},
}
NUM_COLORS = 6
DASHES: tuple[object, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
"""Kinds of lines, as Matplotlib names them: more curves than colours differ in these, too."""


def color_of(number: int) -> str:
    """Return the name of the colour of a curve, which is repeated after `NUM_COLORS`; -1 is grey."""
    return "grey" if number < 0 else f"c{number % NUM_COLORS}"


def css() -> str:
    """Return rules for the colours: light, or dark if the reader's system or the page's switch says so.

    What has colours of its own for a light ground is on paper, which is light in any case.
    """
    light, dark = (";".join(f"--{name}:{value}" for name, value in colors.items()) for colors in (LIGHT, DARK))
    names = ("grey", "bad", *(f"c{number}" for number in range(NUM_COLORS)))
    classes = "".join(
        f".{name}{{stroke:var(--{name})}}.{name}.fill{{fill:var(--{name});stroke:none}}"
        f"#tip .{name}{{background:var(--{name})}}"
        for name in names
    )
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{dark}}}}}\n.paper{{color-scheme:light;{light}}}\n"
        f"{classes}\n"
    )
